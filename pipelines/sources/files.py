"""Photos that are files: below a local folder, alone, or below a folder on S3."""

import functools
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import attach_checksums, check_published, index_at
from pipelines.sources.skipping import FOLDER_MARKER, Listing, is_system_folder
from pipelines.sources.source import (
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    is_photo,
    printable_name,
)

_NO_CONTENT: Final = "unreadable"
_OBJECTS_TRIED: Final = 200
_ABOUT_ONE: Final = (storage.AccessRefusedError, storage.ObjectUnavailableError, storage.ReplacedError)


@dataclass(frozen=True)
class FolderSource(PhotoSource):
    """A local folder and all below it; folders behind symbolic links are entered once.

    `index` is the path of FFHQ's index, or "": each photo in it must have its published checksum.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the folder's photos, sorted by relative name."""
        refs = sort_refs(_entries(self.uri, Listing(self.every_file)), in_order=False)
        yield from attach_checksums(refs, index_at(self.index), Path(self.uri).name)

    def read(self, ref: PhotoRef) -> bytes:
        """Read a file; PhotoUnreadableError if it changed after it was listed or is not the published one.

        PlaceError if the whole folder went away, such as a disk that was pulled out: no photo is at fault.
        """
        try:
            return check_published(ref, _read(ref))
        except PhotoUnreadableError:
            _require_folder(self.uri)
            raise


@dataclass(frozen=True)
class FileSource(PhotoSource):
    """One file, local or on S3."""

    uri: str
    every_file: bool = False

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the file if it may be a photo. It may be hidden, because the user named it."""
        name = self.uri.rpartition("/")[2]
        if not self.every_file and not is_photo(name.lstrip(".")):
            return
        if storage.is_remote(self.uri):
            yield PhotoRef(self.uri, name, storage.size(self.uri), storage.version(self.uri))
        else:
            yield _file_ref(Path(self.uri), printable_name(name))

    def read(self, ref: PhotoRef) -> bytes:
        """Read the file; PhotoUnreadableError if it changed after it was listed."""
        return _read(ref)


@dataclass(frozen=True)
class RemoteFolderSource(PhotoSource):
    """A folder on S3 and all below it. `index` is the place of FFHQ's index, or ""."""

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the folder's photos, sorted by relative name; the fingerprint is the ETag."""
        refs = _objects(self.uri, Listing(self.every_file))
        yield from attach_checksums(refs, index_at(self.index), self.uri.rpartition("/")[2])

    def read(self, ref: PhotoRef) -> bytes:
        """Fetch one object, verified as `storage.read_version` does.

        An error of the network is raised as it is: it does not quarantine the photo, and the task is retried
        (`cluster/pool.py`). A refusal quarantines the photo if other objects of the folder can be read.
        """
        try:
            return check_published(ref, _read(ref))
        except storage.AccessRefusedError as error:
            if not _holds_readable(self.uri, os.getpid()):
                raise
            raise PhotoUnreadableError(f"{ref.name}{str(error).removeprefix(ref.uri)}") from error


def _entries(top: str, listing: Listing) -> Iterator[PhotoRef]:
    """Yield everything below a folder that is listed, in no order.

    A broken link is yielded too, as an input that cannot be read, and so is a folder that cannot be listed.
    Folders are entered in the order of their names, so that of two paths to one folder always the same is
    taken. UsageError if the top folder cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [("", top)]
    while waiting:
        prefix, folder = waiting.pop()
        folders = []
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = f"{prefix}{printable_name(entry.name)}"
                    if not _is_folder(entry):
                        place = listing.place_of(name)
                    elif is_system_folder(entry.name):
                        place = listing.place_of(f"{name}/")
                    else:
                        place = None
                        folders.append((f"{name}/", entry.path))
                    if place is not None:
                        yield _file_ref(entry, *place)
        except OSError as error:
            if not prefix:
                raise UsageError(
                    f"{top} cannot be listed ({error.strerror}); expected a folder that this user may read; "
                    "change its rights, or name another"
                ) from error
            if not storage.is_about_one_file(error, writing=False):
                raise storage.place_error(folder, error, "listed") from error
            yield PhotoRef(folder, prefix, 0, _NO_CONTENT)
        waiting += sorted(folders, reverse=True)


def _objects(uri: str, listing: Listing) -> Iterator[PhotoRef]:
    """Yield every object below a prefix that is listed, whatever its key, in the order of the keys."""
    for entry in storage.list_objects(uri):
        place = listing.place_of(entry.path)
        if place is not None:
            name, skipped = place
            if entry.path.endswith("/") and not entry.num_bytes:
                skipped = skipped or FOLDER_MARKER
            # the key as it is: `storage.join` would drop the slashes that a key may begin with
            yield PhotoRef(f"{uri}/{entry.path}", name, entry.num_bytes, entry.version, skipped=skipped)


@functools.lru_cache(64)
def _holds_readable(uri: str, process: int) -> bool:
    """Whether one of the first objects of a folder can be read, looked up once in a process."""
    for entry in itertools.islice(storage.list_objects(uri), _OBJECTS_TRIED):
        if not entry.num_bytes:
            continue
        try:
            storage.read_version(f"{uri}/{entry.path}", entry.version, 0, 1)
        except (*_ABOUT_ONE, FileNotFoundError):
            continue
        return True
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """True for a folder, also behind a link; False for a link that leads nowhere or to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _file_ref(path: Path | os.DirEntry[str], name: str, skipped: str = "") -> PhotoRef:
    try:
        status = path.stat()
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise storage.place_error(os.fspath(path), error, "read") from error
        return PhotoRef(os.fspath(path), name, 0, _NO_CONTENT, skipped=skipped)
    if not stat.S_ISREG(status.st_mode):
        return PhotoRef(os.fspath(path), name, 0, _NO_CONTENT, skipped=skipped)
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return PhotoRef(os.fspath(path), name, status.st_size, version, skipped=skipped)


def _read(ref: PhotoRef) -> bytes:
    check_size(ref)
    try:
        if ref.name.endswith("/") and not storage.is_remote(ref.uri):
            _require_listable(ref)
        return storage.read_version(ref.uri, ref.fingerprint)
    except storage.ReplacedError as error:
        # without the folder, so that the record is the same wherever the photos lie
        raise PhotoUnreadableError(f"{ref.name}{str(error).removeprefix(ref.uri)}") from error
    except FileNotFoundError as error:
        found = (
            "it is a link to a file that does not exist; mend or remove the link"
            if ref.fingerprint == _NO_CONTENT
            else "it is gone; expected it as listed; run the command again"
        )
        raise PhotoUnreadableError(f"{ref.name} cannot be read: {found}") from error
    except storage.ObjectUnavailableError as error:
        raise PhotoUnreadableError(f"{ref.name}{str(error).removeprefix(ref.uri)}") from error
    except OSError as error:
        if storage.is_remote(ref.uri):
            raise
        if not storage.is_about_one_file(error, writing=False):
            raise storage.place_error(Path(ref.uri).parent, error, "read") from error
        raise PhotoUnreadableError(f"{ref.name} cannot be read ({error.strerror})") from error


def _require_folder(uri: str) -> None:
    """Raise PlaceError unless a folder can be listed."""
    try:
        os.scandir(uri).close()
    except OSError as error:
        raise storage.place_error(uri, error, "read") from error


def _require_listable(ref: PhotoRef) -> None:
    """Raise an OSError if a folder still cannot be listed, PhotoUnreadableError if it can now."""
    with os.scandir(ref.uri) as entries:
        next(entries, None)
    raise PhotoUnreadableError(f"{ref.name} could not be listed and now can; run the command again")
