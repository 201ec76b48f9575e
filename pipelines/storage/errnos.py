"""Which errors of the operating system concern one file, and which the place where all files are.

Only the first kind may count against a photo. A full disk, a missing right on a folder or a network that is
gone would fail the next photo too. What is not listed here counts as the place's, so that no photo is blamed
by mistake.
"""

import errno
from typing import Final

from pipelines.storage.errors import PlaceError

_NAME: Final = frozenset(
    (
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ELOOP,
        errno.EFBIG,
        errno.ETXTBSY,
        errno.ENXIO,
    )
)
"""The name is refused, or something else has it, or the file grew too large for the file system."""
_CONTENT: Final = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EOVERFLOW,
        errno.EBADMSG,
        errno.EUCLEAN,
        errno.ENODATA,
        errno.EOPNOTSUPP,
        errno.EBUSY,
    )
)
"""One file cannot be read: it is gone or locked, its owner forbids it, its blocks are damaged."""


def is_about_one_file(error: OSError, writing: bool) -> bool:
    """True if an error concerns the file that was read or written, False if it concerns its place.

    A right that is missing, or an error of the device, concerns one file when it is read, and the place when
    it is written. An error without a number concerns the place.
    """
    return error.errno in _NAME or (not writing and error.errno in _CONTENT)


def place_error(uri: object, error: OSError, action: str = "written") -> PlaceError:
    """Return the error for a place where no file can be written, read or listed; it says what to do."""
    reason = error.strerror or str(error)
    remedy = remedy_for(error) or f"see that its files can be {action}"
    return PlaceError(
        f"{uri} cannot be {action} ({reason}); expected a place that works; {remedy}, then run the same "
        "command again"
    )


def remedy_for(error: OSError) -> str:
    """What to do about an error of the system, in words; "" if the number says nothing."""
    return _REMEDIES.get(error.errno or 0, "")


def needs_mending(error: OSError) -> bool:
    """True if an error of a place passes once something is mended there, so that no other place is needed."""
    return error.errno in _TRANSIENT


_TRANSIENT: Final = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EBUSY,
    )
)
_REMEDIES: Final = {
    errno.ENOSPC: "free some space, or some inodes (`df -i`)",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "raise the limit of open files of the machine",
    errno.ENOMEM: "free some memory",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
}
