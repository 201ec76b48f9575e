"""Opening of regular files only: reading a pipe would wait for ever, reading a device might never end."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, cast

_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """Say in words what a file is that is neither a regular file nor a folder; "" for those two."""
    return next((words for test, words in _KINDS if test(mode)), "")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, which is not opened.

    The file is looked at before it is opened, since opening a device may already act on it, and once more
    after it, since it may have been replaced. Opening never waits.
    """
    _require_regular(path, path.stat().st_mode)
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 - the caller closes it
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(mode) or 'an unknown kind'}, no regular file", str(path))


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
