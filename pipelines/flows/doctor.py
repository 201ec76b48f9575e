"""Checks of a machine: versions of packages, and round trips to storage and tracking.

Each check runs in the driver and on one worker.
"""

import importlib.metadata
import platform
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffbfr.errors import DiffBFRError, one_line
from pipelines import storage
from pipelines.cluster import Cluster

Version = tuple[int, ...]

_TARFILE_HOLES = "CVE-2025-8194 and CVE-2024-6232 in tarfile"
_TARFILE_MENDED: Mapping[Version, int] = {(3, 11): 14, (3, 12): 12, (3, 13): 6}
"""The first release of each minor version of Python that has neither; later minor versions never had both."""


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


REQUIREMENTS = (
    Requirement("python", (3, 11), (4,), "the code is written for 3.11"),
    Requirement(
        "torch",
        (2, 13),
        (2, 14),
        "an open range pulls several GB of CUDA, and what is measured here was measured with 2.13",
    ),
    Requirement("numpy", (2, 0), (2, 5), "the random streams of other versions are not checked"),
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


@dataclass(frozen=True)
class DoctorTask:
    """What one process checks. `tracking` is an MLflow URI, None for the database under the root."""

    root: str
    tracking: str | None
    where: str


@dataclass(frozen=True)
class Check:
    """The result of one check: the process, the subject, and what was found."""

    where: str
    what: str
    ok: bool
    detail: str


def doctor(root: str, tracking: str | None, cluster: Cluster) -> tuple[Check, ...]:
    """Run every check in this process and on one worker; a failed check is a row, not an exception."""
    root = storage.absolute(root)
    checks = examine(DoctorTask(root, tracking, "driver"))
    started = time.monotonic()
    try:
        checks += cluster.map(examine, [DoctorTask(root, tracking, "worker")], label="worker")[0]
    except Exception as error:  # any reason why a worker does not answer is a result
        return (*checks, Check("worker", "answers", False, one_line(error)))
    answered = Check("worker", "answers", True, f"after {time.monotonic() - started:.1f} s")
    return (*checks, answered, Check("cluster", "closed to others", *cluster.exposure()))


def examine(task: DoctorTask) -> tuple[Check, ...]:
    """Run the checks of one process."""
    versions = tuple(_version_check(task.where, requirement) for requirement in REQUIREMENTS)
    return (
        *versions,
        _attempt(task.where, "storage", lambda: _storage_round_trip(task.root)),
        _attempt(task.where, "tracking", lambda: _tracking_round_trip(task.root, task.tracking)),
    )


def _version_check(where: str, requirement: Requirement) -> Check:
    package, wanted = requirement.package, requirement.wanted
    try:
        text = platform.python_version() if package == "python" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        detail = "not installed; reinstall diffbfr" if wanted else "not installed"
        return Check(where, package, not wanted, detail)
    version = tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
    if wanted and requirement.since <= version < requirement.before:
        note = describe_python(version) if package == "python" else ""
        return Check(where, package, True, f"{text}{note}")
    limits = f"expected >={_dotted(requirement.since)},<{_dotted(requirement.before)}: " if wanted else ""
    return Check(where, package, False, f"{text}; {limits}{requirement.why}")


def describe_python(version: Version) -> str:
    """What is known against a version of Python, "" if nothing."""
    mended = _TARFILE_MENDED.get(version[:2])
    if mended is None or version[2] >= mended:
        return ""
    mended_in = _dotted((*version[:2], mended))
    return f"; has {_TARFILE_HOLES}, against which archives are guarded; mended in {mended_in}"


def _storage_round_trip(root: str) -> str:
    """Write a file, read it back, list it, fail to create it again, and remove it."""
    folder = storage.join(root, f"doctor-{uuid.uuid4().hex[:8]}")
    place, data = storage.join(folder, "file"), bytes(range(256)) * 4096
    creation = storage.check_writable(root)
    try:
        storage.write_atomic(place, data)
        if storage.read_bytes(place) != data or storage.list_dir(folder) != ["file"]:
            raise DiffBFRError(
                f"{root} gives back other bytes or names than were written; expected the same; use another "
                "storage"
            )
        if storage.write_atomic(place, b"second", create_only=True) or storage.size(place) != len(data):
            raise DiffBFRError(
                f"{root} lets a second writer replace a file that must be created once; use another storage"
            )
    finally:
        storage.remove_tree(folder)
    return f"{root}: written, read back, created once ({creation}), removed"


def _tracking_round_trip(root: str, tracking: str | None) -> str:
    """Set a tag on the experiment and read it."""
    from pipelines.tracking.connection import open_registry

    registry = open_registry(root, tracking)
    value = uuid.uuid4().hex
    registry.client.set_experiment_tag(registry.experiment_id, "diffbfr.doctor", value)
    found = registry.client.get_experiment(registry.experiment_id).tags.get("diffbfr.doctor")
    if found != value:
        raise DiffBFRError(
            f"{registry.uri} gives back {found!r}, written was {value!r}; expected the same; use another "
            "server"
        )
    return f"{registry.uri}: written, read back"


def _attempt(where: str, what: str, check: Callable[[], str]) -> Check:
    """Run one check; any exception is a failed check."""
    try:
        return Check(where, what, True, check())
    except Exception as error:
        return Check(where, what, False, one_line(error))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
