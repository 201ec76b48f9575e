"""Checks of one machine: versions of packages, free space, devices. Each says what was found, or raises."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffbfr.errors import DiffBFRError
from pipelines import storage
from pipelines.storage import machine

Version = tuple[int, ...]

_TARFILE_HOLES: Final = "CVE-2025-8194 and CVE-2024-6232 in tarfile"
_TARFILE_MENDED: Final[Mapping[Version, int]] = {(3, 11): 14, (3, 12): 12, (3, 13): 6}
"""The first release of each minor version of Python that has neither; later minor versions never had both."""
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_DEVICE_S: Final = 60.0


@dataclass(frozen=True)
class Requirement:
    """The supported versions of a package: `since` <= version < `before`, and why there is a limit.

    With `wanted=False` the package must not be installed.
    """

    package: str
    since: Version
    before: Version
    why: str
    wanted: bool = True


@dataclass(frozen=True)
class Hole:
    """Versions of a package before `mended` let an attacker do what `what` says."""

    mended: Version
    what: str


REQUIREMENTS: Final = (
    Requirement("python", (3, 11), (4,), "the code is written for 3.11"),
    Requirement(
        "torch",
        (2, 13),
        (2, 14),
        "an open range pulls several GB of CUDA, and what is measured here was measured with 2.13",
    ),
    Requirement("numpy", (2, 0), (2, 5), "the random streams of other versions are not checked"),
    Requirement("pillow", (12, 3), (14,), "what decodes photos is kept up to date"),
    Requirement("opencv-python-headless", (4, 9), (5,), "version 5 has no CascadeClassifier"),
    Requirement("albumentations", (2, 0, 8), (2, 0, 9), "2.0.8 is the last one under the MIT licence"),
    Requirement("webdataset", (1, 0, 2), (2,), "1.0.2 changed its interface"),
    Requirement("ray", (2, 60), (3,), "Ray Train before V2 resumes differently"),
    Requirement("mlflow", (3, 17), (4,), "models-from-code and aliases as used here"),
    Requirement("pyarrow", (20,), (26,), "MLflow does not take 26"),
    Requirement("botocore", (1, 40), (1, 43, 118), "s3fs does not take a newer one"),
    Requirement("albumentationsx", (), (), "its licence is AGPL; uninstall it", wanted=False),
    Requirement(
        "torchvision",
        (),
        (),
        "it does not import beside the CPU build of torch and breaks others with it; uninstall it",
        wanted=False,
    ),
)
HOLES: Final[Mapping[str, Hole]] = {
    "mlflow": Hole((3, 15), "who reaches the server can read and write more than its artifacts"),
    "pillow": Hole((12, 3), "a photo can write outside the memory of its decoder"),
    "ray": Hole((2, 52), "a web page that is open on this machine can run code on the cluster"),
    "torch": Hole((2, 10), "loading weights can corrupt memory"),
}
"""Known holes that a newer version mends."""


@dataclass(frozen=True)
class SpaceLimit:
    """The least free space of a folder, and what fills it."""

    folder: Path
    least_bytes: int
    why: str


def check_version(requirement: Requirement) -> tuple[bool, str]:
    """Whether the installed version of a package is supported, and which it is or what to do."""
    package, wanted = requirement.package, requirement.wanted
    try:
        text = platform.python_version() if package == "python" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        detail = "not installed; expected it; reinstall diffbfr" if wanted else "not installed"
        return not wanted, detail
    version = parse_version(text)
    if hole := describe_hole(package, version):
        return False, f"{text}: {hole}"
    if wanted and requirement.since <= version < requirement.before:
        note = describe_python(version) if package == "python" else ""
        return True, f"{text}{note}"
    if not wanted:
        return False, f"{text}: {requirement.why}"
    limits = f">={_dotted(requirement.since)},<{_dotted(requirement.before)}"
    return False, (
        f"{text}; expected {limits}: {requirement.why}; install requirements.lock, or an image of this "
        "version"
    )


def parse_version(text: str) -> Version:
    """The first three numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def describe_hole(package: str, version: Version) -> str:
    """What is known against a version of a package, and what to do; "" if nothing."""
    hole = HOLES.get(package)
    if hole is None or version >= hole.mended:
        return ""
    mended = _dotted(hole.mended)
    return f"{hole.what}; expected {mended} or newer; install requirements.lock, or an image of this version"


def describe_python(version: Version) -> str:
    """What is known against a version of Python, "" if nothing."""
    mended = _TARFILE_MENDED.get(version[:2])
    if mended is None or version[2] >= mended:
        return ""
    mended_in = _dotted((*version[:2], mended))
    return f"; has {_TARFILE_HOLES}, against which archives are guarded; mended in {mended_in}"


def space_limits() -> tuple[SpaceLimit, ...]:
    """The folders that work fills on this machine, whatever its root."""
    return (
        SpaceLimit(Path(tempfile.gettempdir()), _GIB, "Ray's files and pieces of archives"),
        SpaceLimit(Path("/dev/shm"), 256 * _MIB, "Ray's object store"),
        SpaceLimit(storage.cache_folder(""), _GIB, "copies of shards and models"),
    )


def check_space(limits: tuple[SpaceLimit, ...]) -> str:
    """The free space of each folder; DiffBFRError if one has too little."""
    found = []
    for limit in limits:
        free = shutil.disk_usage(_existing(limit.folder)).free
        if free < limit.least_bytes:
            raise DiffBFRError(
                f"{limit.folder} has {_size(free)} free; expected {_size(limit.least_bytes)} for "
                f"{limit.why}; {_remedy(limit.folder)}"
            )
        found.append(f"{limit.folder} {_size(free)}")
    return ", ".join(found)


def check_device(devices: Path = Path("/dev")) -> str:
    """The GPUs and their types of numbers, or the cores; DiffBFRError if torch does not see a GPU of here."""
    present = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    if not present:
        return f"no GPU, {machine.usable_cores()} cores: float32"
    gpus = _ask_torch()
    if not gpus:
        raise DiffBFRError(
            f"{len(present)} GPUs are here ({present[0]}), torch sees none; expected the CUDA build of "
            "torch and a driver that fits; use the CUDA image, and see what nvidia-smi says"
        )
    return "; ".join(
        f"{gpu['name']} {gpu['bytes'] / _GIB:.0f} GiB: {'bfloat16 or float32' if gpu['bf16'] else 'float32'}"
        for gpu in gpus
    )


_ASK_TORCH: Final = """
import json, torch
print(json.dumps([
    {"name": torch.cuda.get_device_name(i), "bytes": torch.cuda.get_device_properties(i).total_memory,
     "bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
    for i in range(torch.cuda.device_count())
]))
"""


def _ask_torch() -> list[dict[str, Any]]:
    """What torch sees, asked in a process of its own: Ray hides the GPUs from a task that asks for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    words = [sys.executable, "-c", _ASK_TORCH]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=_DEVICE_S, check=False
    )
    gpus: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
    return gpus


def clock_offset(asked: float, began: float, ended: float, answered: float) -> float:
    """By how many seconds at least another clock is ahead of ours (negative: behind), 0 if it may agree.

    `asked` and `answered` are of our clock; `began` and `ended` of the other one, and lie between them.
    """
    least, most = ended - answered, began - asked
    if least <= 0 <= most:
        return 0.0
    return least if least > 0 else most


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _remedy(folder: Path) -> str:
    if folder == Path("/dev/shm"):
        return "start the container with --shm-size=2g, or enlarge its memory volume"
    variable = "TMPDIR" if folder == Path(tempfile.gettempdir()) else "DIFFBFR_CACHE"
    return f"free some, or set {variable} to a folder with room"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.0f} GiB" if num_bytes >= 10 * _GIB else f"{num_bytes / _GIB:.2g} GiB"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
