"""Files on this machine's disks: writes are atomic, and a read notices a change of the file."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.storage.errors import ReplacedError, corrupt_error
from pipelines.storage.regular import open_regular

TEMPORARY_PREFIX = ".diffbfr-"
TEMPORARY = ".tmp"
_PIECE_BYTES = 1 << 20


def version_of(status: os.stat_result) -> str:
    """Return size and time of the last change, which change with the content of a file."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_version(path: Path, listed: str, start: int, length: int | None) -> bytes:
    """Return a file, or a part; `ReplacedError` unless it has this version before and after the reading.

    The time of the last change of the inode (ctime) is compared too, because a writer may reset the mtime.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        if version_of(before) != listed:
            raise ReplacedError(
                f"{path} changed after it was listed; expected the listed content; run the command again"
            )
        file.seek(start)
        data = file.read() if length is None else file.read(length)
        after = os.fstat(file.fileno())
    whole = length is not None or len(data) == before.st_size
    if not whole or (version_of(after), after.st_ctime_ns) != (listed, before.st_ctime_ns):
        raise ReplacedError(
            f"{path} changed while it was read; expected the listed content; run the command again"
        )
    return data


def write(path: Path, data: bytes, create_only: bool) -> bool:
    """Write a file whole or not at all; False and no change if it exists and `create_only` is set."""
    view = memoryview(data)
    return _publish(
        path,
        lambda: (view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES)),
        create_only,
    )


def copy(source: Path, path: Path) -> None:
    """Copy a file to a place, whole or not at all; memory holds a piece at a time."""
    _publish(path, lambda: _pieces(source), create_only=False)


def temporary(path: Path) -> Path:
    """Return a unique name in the folder of the target, so that a rename stays inside one file system.

    Its length does not depend on the target's, which may have the longest name that the file system takes.
    """
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{TEMPORARY}")


def _publish(path: Path, pieces: Callable[[], Iterator[bytes | memoryview]], create_only: bool) -> bool:
    """Write to a temporary name, sync, read back, then rename or link.

    The folder is synced too, so that the new name survives a power cut.
    """
    if create_only and path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = temporary(path)
    try:
        with draft.open("xb") as file:
            file.writelines(pieces())
            file.flush()
            os.fsync(file.fileno())
        if not _holds(draft, pieces()):
            raise corrupt_error(path)
        if create_only:
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
        else:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _holds(path: Path, pieces: Iterator[bytes | memoryview]) -> bool:
    with open_regular(path) as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


def _pieces(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
