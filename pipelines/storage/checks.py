"""Tries a place in every way in which it is used: before work begins, and in full for `diffbfr doctor`."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from diffbfr.errors import DiffBFRError, UsageError, one_line
from pipelines.storage import files, local, s3
from pipelines.storage.drafts import draft_name
from pipelines.storage.errnos import needs_mending, place_error
from pipelines.storage.errors import TransportError, corrupt_error
from pipelines.storage.files import Uri

_NUM_WRITERS: Final = 8
_PART_BYTES: Final = 5 << 20  # the least that S3 takes for a part that is not the last
_LARGE: Final = bytes(range(256)) * (2 * _PART_BYTES // 256) + b"the last part"


def check_writable(uri: Uri, advice: str = "name another with --root") -> str:
    """Write small files in every way that is used later; UsageError with the reason if that fails.

    TransportError if S3 does not answer. Returns how a file is created only once there, in words.
    """
    probe = files.join(uri, draft_name())
    try:
        created = files.write_atomic(probe, b"diffbfr", create_only=True)
        if not created or files.write_atomic(probe, b"again", create_only=True):
            files.remove_tree(probe)
            raise _not_exclusive(uri, advice)
        files.write_atomic(probe, b"replaced")
        if files.read_bytes(probe) != b"replaced":
            raise corrupt_error(probe)
        files.remove_tree(probe)
        return _creation(uri)
    except (UsageError, TransportError):
        raise
    except OSError as error:
        if needs_mending(error) and not files.is_remote(uri):
            raise place_error(uri, error) from error
        raise _unwritable(uri, error, advice) from error
    # every storage client has errors of its own, and each means the same to the user
    except Exception as error:
        raise _unwritable(uri, error, advice) from error


def probe(uri: Uri) -> str:
    """Put, get, list, replace, create once, put in parts and delete below a place; says what was done.

    `create once` is tried by several writers at the same time. A DiffBFRError names the operation that did
    not do what it must, or that failed.
    """
    folder = files.join(uri, f"doctor-{os.urandom(4).hex()}")
    try:
        for name, operation in _OPERATIONS.items():
            _try(uri, name, partial(operation, folder))
    finally:
        _try(uri, "delete", partial(files.remove_tree, folder))
    if files.list_dir(folder):
        raise _wrong(uri, "delete", "leaves files behind", "expected none")
    return f"{', '.join([*_OPERATIONS, 'delete'])} ({_creation(uri)})"


def _put_and_get(folder: Uri) -> None:
    data = bytes(range(256)) * 4096
    place = files.join(folder, "file")
    files.write_atomic(place, data)
    if files.read_bytes(place) != data:
        raise _wrong(folder, "get", "gives back other bytes than were written", "expected the same")
    if files.read_range(place, 1000, 10) != data[1000:1010]:
        raise _wrong(folder, "get", "gives back another part than was asked for", "expected that one")


def _list(folder: Uri) -> None:
    found = [*files.list_dir(folder), *(entry.path for entry in files.walk(folder))]
    if found != ["file", "file"]:
        raise _wrong(folder, "list", f"shows {found}", "expected what was written")


def _replace(folder: Uri) -> None:
    place = files.join(folder, "file")
    files.write_atomic(place, b"replaced")
    if files.read_bytes(place) != b"replaced":
        raise _wrong(folder, "replace", "keeps the old content", "expected the new one")


def _create_once(folder: Uri) -> None:
    """Of writers that come one after the other and at the same time, exactly one may create a file."""
    place = files.join(folder, "file")
    if files.write_atomic(place, b"second", create_only=True) or files.read_bytes(place) != b"replaced":
        raise _not_exclusive(folder, "use another storage")
    contents = [f"writer {number}".encode() for number in range(_NUM_WRITERS)]
    contested = files.join(folder, "contested")
    with ThreadPoolExecutor(_NUM_WRITERS) as writers:
        won = list(writers.map(lambda data: files.write_atomic(contested, data, create_only=True), contents))
    if won.count(True) != 1 or files.read_bytes(contested) != contents[won.index(True)]:
        raise _not_exclusive(folder, "use another storage")


def _put_in_parts(folder: Uri) -> None:
    place = files.join(folder, "parts")
    if files.is_remote(place):
        s3.connect().pipe_file(str(place), _LARGE, chunksize=_PART_BYTES)
    else:
        files.write_atomic(place, _LARGE)
    if files.read_bytes(place) != _LARGE:
        raise _wrong(
            folder,
            "put in parts",
            "stores other bytes than were sent",
            "expected the same (some servers store the framing of checksums)",
        )


_OPERATIONS: Final[dict[str, Callable[[Uri], None]]] = {
    "put and get": _put_and_get,
    "list": _list,
    "replace": _replace,
    "create once": _create_once,
    "put in parts": _put_in_parts,
}


def _try(uri: Uri, name: str, operation: Callable[[], None]) -> None:
    try:
        operation()
    except DiffBFRError:
        raise
    except Exception as error:  # every storage client has errors of its own
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(
            f"{uri}: {name} failed ({reason}); expected a folder or bucket that this user may "
            "write; check the place, its policy, credentials and endpoint"
        ) from error


def _creation(uri: Uri) -> str:
    if files.is_remote(uri):
        return "If-None-Match"
    return (
        "hard links" if local.creates_by_link(files.local_path(uri)) else "exclusive creation, no hard links"
    )


def _wrong(uri: Uri, operation: str, found: str, expected: str) -> DiffBFRError:
    return DiffBFRError(f"{uri}: {operation}: it {found}; {expected}; use another storage")


def _not_exclusive(uri: Uri, advice: str) -> UsageError:
    return UsageError(
        f"{uri} lets a second writer replace a file that must be created once; expected a server that "
        f"honours If-None-Match, or a file system with exclusive creation; {advice}"
    )


def _unwritable(uri: Uri, error: Exception, advice: str) -> UsageError:
    return UsageError(
        f"cannot write to {uri} ({one_line(error)}); expected a writable folder or bucket; {advice}"
    )
