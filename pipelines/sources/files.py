"""Photos that are files: below a local folder, alone, or below a folder on S3."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import attach_checksums, check_published, index_at
from pipelines.sources.source import PhotoRef, PhotoSource, PhotoUnreadableError, check_size, is_photo

_NO_CONTENT: Final = "unreadable"


@dataclass(frozen=True)
class FolderSource(PhotoSource):
    """A local folder and all below it; linked folders are entered once.

    `index` is the publisher's list of FFHQ ("" if there is none): each photo that it names must be the
    published one.
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
        """Read a file that has not changed since it was listed and is the published one."""
        return check_published(ref, _read(ref))


@dataclass(frozen=True)
class FileSource(PhotoSource):
    """One local file."""

    uri: str
    every_file: bool = False

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the file, if it may be a photo; its user named it, so it may be hidden."""
        path = Path(self.uri)
        if self.every_file or is_photo(path.name.lstrip(".")):
            yield _file_ref(path, _utf8(path.name))

    def read(self, ref: PhotoRef) -> bytes:
        """Read the file if it has not changed since it was listed."""
        return _read(ref)


@dataclass(frozen=True)
class RemoteFolderSource(PhotoSource):
    """A folder on S3 and all below it, with FFHQ's `index` if there is one."""

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
        """Fetch one object, proved by its ETag or by a second reading.

        A network that fails is not the photo's fault: that error is the task's, and the task is tried again
        (`cluster/pool.py`).
        """
        return check_published(ref, _read(ref))


def _files(folder: str, prefix: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the name and place of all below a folder that is no folder, a broken link too: it is an input
    that cannot be read.

    Files come in no order. Folders are entered in the order of their names, so that of two ways to one folder
    it is always the same.
    """
    facts = Path(folder).stat()
    if (facts.st_dev, facts.st_ino) in entered:
        return
    entered.add((facts.st_dev, facts.st_ino))
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{_utf8(entry.name)}"
            if entry.is_dir():
                folders.append((f"{name}/", entry.path))
            else:
                yield name, entry
    for name, path in sorted(folders):
        yield from _files(path, name, entered)


def _file_ref(path: Path | os.DirEntry[str], name: str) -> PhotoRef:
    try:
        facts = path.stat()
    except OSError:
        return PhotoRef(os.fspath(path), name, 0, _NO_CONTENT)
    return PhotoRef(os.fspath(path), name, facts.st_size, f"{facts.st_size}-{facts.st_mtime_ns}")


def _read(ref: PhotoRef) -> bytes:
    check_size(ref)
    try:
        return storage.read_version(ref.uri, ref.fingerprint)
    except storage.ReplacedError as error:
        raise PhotoUnreadableError(
            f"{ref.name}{str(error).removeprefix(ref.uri)}"
        ) from error  # which folder it was in changes no record
    except FileNotFoundError as error:
        raise PhotoUnreadableError(
            f"{ref.name} cannot be read: it is gone; expected it as listed; run the command again"
        ) from error
    except OSError as error:
        if storage.is_remote(ref.uri):
            raise
        raise PhotoUnreadableError(f"{ref.name} cannot be read ({error.strerror})") from error


def _utf8(name: str) -> str:
    """Make a file name fit for tables: bytes that are no UTF-8 are written as escapes; everything else
    stays as it is.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
