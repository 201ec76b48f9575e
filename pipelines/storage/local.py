"""Files on this machine's disks: writes are atomic, and a read notices a change of the file.

Only regular files are read: a pipe, a device or a folder in the place of a file is an error, not a hang. With
`within`, no link below that folder is followed or replaced. The check precedes the write, so it protects from
an output folder that came from somebody else, not from somebody who changes it at the same moment.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.storage.drafts import draft_name, is_abandoned, is_draft
from pipelines.storage.errors import ReplacedError, UnsafePlaceError, corrupt_error, link_error
from pipelines.storage.regular import open_regular

_PIECE_BYTES = 1 << 20
FILE_MODE: Final = 0o666
_NO_HARD_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
)
"""What `link` answers where there are no hard links: exFAT, SMB, FUSE and union file systems."""
_NO_FOLDER_SYNC: Final = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
)
_CLAIM_WAIT_S: Final = 5.0
_CLAIM_POLL_S: Final = 0.02


@dataclass(frozen=True)
class WriteRules:
    """Where a write may lead, and who may read the file.

    `within` is a folder below which no link is followed or replaced, None to follow all. `mode` holds the
    permission bits of a new file; the umask is taken off them.
    """

    within: Path | None = None
    mode: int = FILE_MODE


ANYWHERE: Final = WriteRules()


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


def write(path: Path, data: bytes, create_only: bool, rules: WriteRules = ANYWHERE) -> bool:
    """Write a file whole or not at all; False and no change if it exists and `create_only` is set."""
    view = memoryview(data)
    return _publish(
        path,
        lambda: (view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES)),
        create_only,
        rules,
    )


def copy(source: Path, path: Path, rules: WriteRules = ANYWHERE) -> None:
    """Copy a file to a place, whole or not at all; memory holds a piece at a time."""
    _publish(path, lambda: _pieces(source), create_only=False, rules=rules)


def draft(path: Path) -> Path:
    """Return a unique name in the folder of the target, so that a rename stays inside one file system."""
    return path.with_name(draft_name())


def refuse_links(path: Path, within: Path) -> None:
    """Raise `UnsafePlaceError` if a part of the path below `within` is a link, or leads out of it."""
    try:
        parts = path.relative_to(within).parts
    except ValueError:
        parts = ("..",)
    if ".." in parts:
        raise UnsafePlaceError(f"{path} does not lie in {within}; expected a place inside it; report this")
    place = within
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise link_error(place)


def remove_file(path: Path, within: Path) -> bool:
    """Remove a file below `within`; False if there is none, `UnsafePlaceError` for a folder or a link."""
    refuse_links(path, within)
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            raise UnsafePlaceError(f"{path} is a folder; expected a file; move the folder elsewhere")
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def reopen_folder(folder: Path) -> None:
    """Take over a folder of an earlier run: refuse links, remove what dead writers left unfinished."""
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise link_error(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif is_draft(entry.name):
                    _remove_abandoned(entry)


def creates_by_link(folder: Path) -> bool:
    """True if the folder's file system has hard links; files are created exclusively by name where not."""
    first, second = draft(folder / "x"), draft(folder / "x")
    try:
        first.touch(exist_ok=False)
        os.link(first, second)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return False
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    return True


def _remove_abandoned(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(FileNotFoundError):  # another run removes it too
        if is_abandoned(entry.name, entry.stat(follow_symlinks=False).st_mtime):
            Path(entry.path).unlink()


def _publish(
    path: Path, pieces: Callable[[], Iterator[bytes | memoryview]], create_only: bool, rules: WriteRules
) -> bool:
    """Write to a temporary name, sync, read back, then rename or link.

    The folder is synced too, so that the new name survives a power cut.
    """
    if rules.within is not None:
        refuse_links(path, rules.within)
    if create_only and path.exists() and path.stat().st_size:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = draft(path)
    try:
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, rules.mode)) as file:
            file.writelines(pieces())
            file.flush()
            os.fsync(file.fileno())
        if not _holds(unfinished, pieces()):
            raise corrupt_error(path)
        if create_only:
            if not _create(unfinished, path):
                return False
        else:
            unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):  # if it cannot be removed, a later run sweeps it
            unfinished.unlink()
    _sync_folder(path.parent)
    return True


def _create(unfinished: Path, path: Path) -> bool:
    """Give a file its name unless the name is taken; of several writers exactly one gets True."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_exclusively(unfinished, path)
    return True


def _create_exclusively(unfinished: Path, path: Path) -> bool:
    """Do the same without hard links: an empty file reserves the name, and the content is renamed over it.

    A writer that was killed in between leaves the empty file; the next one waits for its content in vain and
    takes its place.
    """
    for _ in range(2):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            if _comes_to_hold_something(path):
                return False
            path.unlink(missing_ok=True)
            continue
        try:
            unfinished.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return True
    return False


def _comes_to_hold_something(path: Path) -> bool:
    deadline = time.monotonic() + _CLAIM_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size:
                return True
        time.sleep(_CLAIM_POLL_S)
    return False


def _sync_folder(folder: Path) -> None:
    """Sync a folder where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _holds(path: Path, pieces: Iterator[bytes | memoryview]) -> bool:
    with open_regular(path) as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


def _pieces(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
