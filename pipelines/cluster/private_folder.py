"""A folder of this user alone for the files and sockets of a Ray of our own.

The path of a Unix socket is limited, and Ray's are long: the folder must lie where its own path is short. It
holds the identity of its driver, so that the folder of a driver that was killed is found and removed.
"""

import contextlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from diffbfr.errors import UsageError

_PREFIX = "diffbfr-"
_DRIVER_FILE = "driver"
_RANDOM_BYTES = 8
"""What `tempfile` appends to the prefix of a folder."""
RAY_FOLDER = "r"
"""What is given to Ray, which opens the folder that it is given to all users."""
_RAY_SOCKET = f"{RAY_FOLDER}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path of Ray below the folder: the greatest PID of Linux has seven digits."""
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
MAX_PARENT_BYTES = _SOCKET_BYTES - len(f"/{_PREFIX}/{_RAY_SOCKET}") - _RANDOM_BYTES
"""How long the path of the folder's parent may be."""
_FREE_BYTES = 64 << 20
"""Room for the logs of Ray."""


def create_private_folder(identity: str) -> Path:
    """Make an empty folder (mode 0700) that belongs to the driver `identity`; UsageError if no place will do.

    The places are, in this order: `RAY_TMPDIR`, `TMPDIR`, `/tmp`, `/var/tmp`, `XDG_RUNTIME_DIR`, `/dev/shm`.
    """
    problems = []
    for parent in parents():
        problem = find_problem(parent)
        if not problem:
            try:
                return _create(parent, identity)
            except OSError as error:
                problem = error.strerror or str(error)
        problems.append(f"{parent}: {problem}")
    raise UsageError(
        f"no folder for the sockets of Ray ({'; '.join(problems)}); expected a writable one with a path "
        f"of at most {MAX_PARENT_BYTES} bytes and {_FREE_BYTES >> 20} MiB free; set RAY_TMPDIR to one, or "
        "cluster.num_workers=0 to work without Ray"
    )


def remove_dead_folders(is_dead: Callable[[str], bool]) -> None:
    """Remove the folders of this user whose driver has ended without doing so itself."""
    for folder in _own_folders():
        with contextlib.suppress(OSError):
            if is_dead((folder / _DRIVER_FILE).read_text()):
                shutil.rmtree(folder, ignore_errors=True)


def parents() -> list[Path]:
    """The places where the folder may lie, the preferred one first, each once."""
    named = (os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR"))
    last = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")
    places = (*named, "/tmp", "/var/tmp", *last)
    return list(dict.fromkeys(Path(place).absolute() for place in places if place))


def find_problem(parent: Path) -> str:
    """Why the folder cannot lie there, "" if it can."""
    if (length := len(os.fsencode(parent))) > MAX_PARENT_BYTES:
        return f"a path of {length} bytes"
    try:
        found = parent.stat()
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(found.st_mode):
        return "not a folder"
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
        return "others may rename what is in it"
    if free < _FREE_BYTES:
        return f"{free >> 20} MiB free"
    return ""


def _create(parent: Path, identity: str) -> Path:
    """Make the folder there; OSError if it cannot be, or cannot hold a file or a socket."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        (folder / _DRIVER_FILE).write_text(identity)
        _check_sockets(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _check_sockets(folder: Path) -> None:
    """OSError if the file system has no sockets, as some of shared folders."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(folder / "probe"))
    (folder / "probe").unlink()


def _own_folders() -> Iterator[Path]:
    for parent in parents():
        with contextlib.suppress(OSError):
            for folder in parent.glob(f"{_PREFIX}{'?' * _RANDOM_BYTES}"):
                found = folder.lstat()
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                    yield folder
