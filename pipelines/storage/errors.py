"""Errors of storage: written data is corrupt, the transport or the place failed, a file was replaced."""

from diffbfr.errors import DiffBFRError, IncompleteError


class StorageError(DiffBFRError):
    """Written bytes read back different. Nothing was published, or what was published was removed."""


class TransportError(IncompleteError):
    """The network or the server failed, not the file: the same call may succeed later."""


class ReplacedError(DiffBFRError):
    """A file is not the one that was listed: it was rewritten, or never comes with the listed digest."""


class PlaceError(IncompleteError):
    """A disk, a mount or a right fails, whatever the file: the same call succeeds once that is mended."""


def corrupt_error(place: object) -> StorageError:
    """Return the error for a file that reads back different from what was written."""
    return StorageError(
        f"{place} reads back different from what was written; expected the same bytes; run `diffbfr doctor` "
        "on this storage"
    )
