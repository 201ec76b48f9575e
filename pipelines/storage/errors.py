"""How storage fails: what a retry may mend, what was replaced, what is corrupt_error."""

from diffbfr.errors import DiffBFRError, IncompleteError


class StorageError(DiffBFRError):
    """What was written could not be read back as written; nothing was published, or what was published was
    removed.
    """


class TransportError(IncompleteError):
    """The network or the server is at fault, not what lies there: the same call may succeed later."""


class ReplacedError(DiffBFRError):
    """What lies there is not what was listed: written anew since, while it was read, or it never comes
    with the digest that it had.
    """


def corrupt_error(place: object) -> StorageError:
    """Say that a place does not hold what was written there."""
    return StorageError(
        f"{place} reads back different from what was written; expected the same bytes; run `diffbfr doctor` "
        "on this storage"
    )
