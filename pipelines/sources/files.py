"""Photos that are files: below a local folder, alone, or below a folder on S3."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import attach_checksums, check_published, index_at
from pipelines.sources.source import (
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    is_photo,
    printable_name,
)

_NO_CONTENT: Final = "unreadable"


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
        files = _files(self.uri, "", set())
        refs = (_file_ref(entry, name) for name, entry in files if self.every_file or is_photo(name))
        yield from attach_checksums(
            sort_refs(refs, in_order=False), index_at(self.index), Path(self.uri).name
        )

    def read(self, ref: PhotoRef) -> bytes:
        """Read a file; PhotoUnreadableError if it changed after it was listed or is not the published one."""
        return check_published(ref, _read(ref))


@dataclass(frozen=True)
class FileSource(PhotoSource):
    """One local file."""

    uri: str
    every_file: bool = False

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the file if it may be a photo. It may be hidden, because the user named it."""
        path = Path(self.uri)
        if self.every_file or is_photo(path.name.lstrip(".")):
            yield _file_ref(path, printable_name(path.name))

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
        refs = (
            PhotoRef(storage.join(self.uri, entry.path), entry.path, entry.num_bytes, entry.version)
            for entry in storage.walk(self.uri)
            if self.every_file or is_photo(entry.path)
        )
        yield from attach_checksums(refs, index_at(self.index), self.uri.rpartition("/")[2])

    def read(self, ref: PhotoRef) -> bytes:
        """Fetch one object, verified as `storage.read_version` does.

        An error of the network is raised as it is: it does not quarantine the photo, and the task is retried
        (`cluster/pool.py`).
        """
        return check_published(ref, _read(ref))


def _files(folder: str, prefix: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (name, entry) of everything below a folder except folders, in no order.

    A broken link is yielded too, as an input that cannot be read. Folders are entered in the order of their
    names, so that of two paths to one folder always the same is taken.
    """
    status = Path(folder).stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{printable_name(entry.name)}"
            if entry.is_dir():
                folders.append((f"{name}/", entry.path))
            else:
                yield name, entry
    for name, path in sorted(folders):
        yield from _files(path, name, entered)


def _file_ref(path: Path | os.DirEntry[str], name: str) -> PhotoRef:
    try:
        status = path.stat()
    except OSError:
        return PhotoRef(os.fspath(path), name, 0, _NO_CONTENT)
    return PhotoRef(os.fspath(path), name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _read(ref: PhotoRef) -> bytes:
    check_size(ref)
    try:
        return storage.read_version(ref.uri, ref.fingerprint)
    except storage.ReplacedError as error:
        # without the folder, so that the record is the same wherever the photos lie
        raise PhotoUnreadableError(f"{ref.name}{str(error).removeprefix(ref.uri)}") from error
    except FileNotFoundError as error:
        raise PhotoUnreadableError(
            f"{ref.name} cannot be read: it is gone; expected it as listed; run the command again"
        ) from error
    except OSError as error:
        if storage.is_remote(ref.uri):
            raise
        raise PhotoUnreadableError(f"{ref.name} cannot be read ({error.strerror})") from error
