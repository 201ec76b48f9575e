"""Photos that are members of a zip: streamed one at a time, never extracted."""

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import IO, Final, cast

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import INDEX, Index, attach_checksums, check_published, index_at
from pipelines.sources.source import (
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    checked,
    is_photo,
)
from pipelines.sources.zip_index import ZipEntry, entries, entry_at, find_index

_BLOCK_BYTES: Final = 1 << 18  # what is fetched from S3 beyond a member's header: most of what follows it
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
"""RuntimeError: encrypted; NotImplementedError: an exotic compression; ValueError: nonsense in the local
header.
"""
_HEADER: Final = struct.Struct(
    "<4s22x2H"
)  # magic, what the index says too, bytes of the name, bytes of the extra field
_ENCRYPTED: Final = 1
_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")  # a member follows; an empty archive


@dataclass(frozen=True)
class ZipSource(PhotoSource):
    """The members of a zip, local or on S3; `PhotoRef.uri` ends in the place of the member's entry in the
    zip's index.

    So equal or odd names stay apart, and a worker reads one entry and not the index. `index` is FFHQ's beside
    the zip; one inside goes before it.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the members that may be photos, sorted by name; a name used twice gets `#2` at its second
        use.
        """
        inside: list[Index] = []
        refs = sort_refs(self._refs(inside))
        first = list(islice(refs, 1))  # the whole index of the zip is read by then
        index = inside[0] if inside else index_at(self.index)
        yield from attach_checksums(chain(first, refs), index, PurePosixPath(self.uri).stem)

    def _refs(self, inside: list[Index]) -> Iterator[PhotoRef]:
        with _readable(self.uri), storage.open_read(self.uri, _BLOCK_BYTES, verified=True) as file:
            for entry in entries(file):
                name, mark = entry.name, f"crc32:{entry.crc:08x}"
                if name.rpartition("/")[2] == INDEX:
                    inside.append(
                        Index(
                            f"{self.uri}#{name}",
                            mark,
                            name.removesuffix(INDEX),
                            open=partial(_open_member, self.uri, entry),
                        )
                    )
                if not name.endswith("/") and (self.every_file or is_photo(name)):
                    yield PhotoRef(f"{self.uri}#{entry.place}", name, entry.num_bytes, mark)

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member; its CRC is checked, by the reader against the zip and here against the listing.

        One that comes from S3 with another CRC is read again, twice: only what the server itself holds is the
        photo's fault.
        """
        check_size(ref)
        gone = (
            f"{ref.name} changed in {self.uri} after it was listed; expected the listed content; run the "
            "command again"
        )
        try:
            archive = _open(self.uri)
            entry = archive.entry(int(ref.uri.rpartition("#")[2]))
            if entry is None or f"crc32:{entry.crc:08x}" != ref.fingerprint:
                raise PhotoUnreadableError(gone)
            data = checked(ref, archive.content(entry))
        except (storage.ReplacedError, FileNotFoundError) as error:
            raise PhotoUnreadableError(gone) from error
        except OSError as error:
            if storage.is_remote(self.uri):
                raise
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})"
            ) from error
        except _DAMAGE as error:
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({' '.join(str(error).split())})"
            ) from error
        return check_published(ref, data)


def looks_like_zip(uri: str) -> bool:
    """Tell by suffix or by first bytes; a photo with a zip glued to its end is a photo."""
    with storage.open_read(uri) as file:
        return file.read(4) in _MAGIC or uri.lower().endswith(".zip")


def check_zip(uri: str) -> None:
    """Raise UsageError unless the archive's index can be found; its entries are read when it is listed."""
    with _readable(uri), storage.open_read(uri, _BLOCK_BYTES, verified=True) as file:
        next(entries(file), None)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UsageError(
            f"{uri} is no readable zip ({error}); expected a whole zip archive; copy or download it again"
        ) from error


@contextlib.contextmanager
def _open_member(uri: str, entry: ZipEntry) -> Iterator[IO[bytes]]:
    with storage.open_read(uri, _BLOCK_BYTES, verified=True) as file, _unpacking(file, entry) as unpacked:
        yield cast(IO[bytes], unpacked)


def _unpacking(file: IO[bytes], entry: ZipEntry) -> zipfile.ZipExtFile:
    """Read a member from its header on; the reader unpacks it and checks its CRC."""
    if entry.flags & _ENCRYPTED:
        raise RuntimeError("it is encrypted")
    file.seek(entry.header)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:4] != _MAGIC[0]:
        raise zipfile.BadZipFile(f"no header at byte {entry.header}")
    _, name_bytes, extra_bytes = _HEADER.unpack(head)
    file.seek(entry.header + _HEADER.size + name_bytes + extra_bytes)
    facts = zipfile.ZipInfo(entry.name)
    facts.compress_type, facts.compress_size, facts.file_size, facts.CRC = (
        entry.method,
        entry.packed_bytes,
        entry.num_bytes,
        entry.crc,
    )
    return zipfile.ZipExtFile(file, "r", facts)


@dataclass(frozen=True)
class _Archive:
    """An open zip, read in two places at once: a block of its index, which members follow each other in, and
    one of its contents.

    From S3 the index is read twice, for it carries no digest; the members do, and are read once.
    """

    index: IO[bytes]
    contents: IO[bytes]
    shift: int

    def entry(self, place: int) -> ZipEntry | None:
        try:
            return entry_at(self.index, place, self.shift)
        except (zipfile.BadZipFile, ValueError):
            return None

    def content(self, entry: ZipEntry) -> bytes:
        try:
            return _unpacking(self.contents, entry).read()
        except _DAMAGE:
            file: object = self.contents
            if not isinstance(file, storage.RemoteFile):
                raise
            file.forget()
            file.verified = True
            try:
                return _unpacking(self.contents, entry).read()
            finally:
                file.verified = False


def _open(uri: str) -> _Archive:
    """Open an archive once a process: a forked child does not share the parent's file position."""
    return _opened(uri, storage.version(uri), os.getpid())


@lru_cache(maxsize=64)
def _opened(uri: str, version: str, process: int) -> _Archive:
    index = storage.open_read(uri, _BLOCK_BYTES, verified=True)
    return _Archive(index, storage.open_read(uri, _BLOCK_BYTES), find_index(index)[2])
