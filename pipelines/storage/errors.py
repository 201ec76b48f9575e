"""Errors of storage: corrupt data, a failed transport or place, a replaced file, a link instead of a file."""

from diffbfr.errors import DiffBFRError, IncompleteError, UsageError


class StorageError(DiffBFRError):
    """Written bytes read back different. Nothing was published, or what was published was removed."""


class TransportError(IncompleteError):
    """The network or the server failed, not the file: the same call may succeed later."""


class ReplacedError(DiffBFRError):
    """A file is not the one that was listed: it was rewritten, or never comes with the listed digest."""


class ObjectUnavailableError(DiffBFRError):
    """One object cannot be read, whatever the network does: it lies in an archive such as Glacier."""


class AccessRefusedError(UsageError):
    """A server refuses what was asked for: one object by its rights, or a whole bucket by a policy."""


class PlaceError(IncompleteError):
    """A disk, a mount or a right fails, whatever the file: the same call succeeds once that is mended."""


class UnsafePlaceError(UsageError):
    """A link, device or pipe in the place of a file, or a name that leads out of its folder."""


def corrupt_error(place: object) -> StorageError:
    """Return the error for a file that reads back different from what was written."""
    return StorageError(
        f"{place} reads back different from what was written; expected the same bytes; run `diffbfr doctor` "
        "on this storage"
    )


def link_error(place: object) -> UnsafePlaceError:
    """Return the error for a link inside a folder that is only written to by this program."""
    return UnsafePlaceError(
        f"{place} is a link; expected a file or folder of its own, because a link would lead the next write "
        "out of the output; remove the link, or name another output"
    )
