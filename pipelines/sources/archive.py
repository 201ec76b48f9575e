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

from diffbfr.errors import UsageError, one_line
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

_BLOCK_BYTES: Final = 1 << 18  # fetched from S3 with a member's header: usually the whole member
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
"""RuntimeError: encrypted; NotImplementedError: unknown compression; ValueError: an invalid local header."""
# magic, fields that the index repeats, bytes of the name, bytes of the extra field
_HEADER: Final = struct.Struct("<4s22x2H")
_ENCRYPTED: Final = 1
_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")  # a member follows; an empty archive


@dataclass(frozen=True)
class ZipSource(PhotoSource):
    """The members of a zip, local or on S3; `PhotoRef.uri` ends in the offset of the entry in its index.

    The offset keeps members of equal name apart, and lets a worker read one entry instead of the index.
    `index` is the place of FFHQ's index beside the zip, or ""; one inside the zip takes precedence.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the members that may be photos, sorted by name; a repeated name gets `#2` the second time."""
        inside: list[Index] = []
        refs = sort_refs(self._refs(inside))
        first = list(islice(refs, 1))  # the whole index of the zip is read by then
        index = inside[0] if inside else index_at(self.index)
        yield from attach_checksums(chain(first, refs), index, PurePosixPath(self.uri).stem)

    def _refs(self, inside: list[Index]) -> Iterator[PhotoRef]:
        with _readable(self.uri), storage.open_read(self.uri, _BLOCK_BYTES, verified=True) as file:
            for entry in entries(file):
                name, fingerprint = entry.name, f"crc32:{entry.crc:08x}"
                if name.rpartition("/")[2] == INDEX:
                    inside.append(
                        Index(
                            f"{self.uri}#{name}",
                            fingerprint,
                            name.removesuffix(INDEX),
                            open=partial(_open_member, self.uri, entry),
                        )
                    )
                if not name.endswith("/") and (self.every_file or is_photo(name)):
                    yield PhotoRef(f"{self.uri}#{entry.place}", name, entry.num_bytes, fingerprint)

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member; its CRC must be that of the zip's index and of the listing.

        A member that comes from S3 with another CRC is fetched again with `read_verified`, so that an error
        of the network does not quarantine the photo.
        """
        check_size(ref)
        changed = (
            f"{ref.name} changed in {self.uri} after it was listed; expected the listed content; run the "
            "command again"
        )
        try:
            archive = _open(self.uri)
            entry = archive.entry(int(ref.uri.rpartition("#")[2]))
            if entry is None or f"crc32:{entry.crc:08x}" != ref.fingerprint:
                raise PhotoUnreadableError(changed)
            data = checked(ref, archive.content(entry))
        except (storage.ReplacedError, FileNotFoundError) as error:
            raise PhotoUnreadableError(changed) from error
        except OSError as error:
            if storage.is_remote(self.uri):
                raise
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})"
            ) from error
        except _DAMAGE as error:
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({one_line(error)})"
            ) from error
        return check_published(ref, data)


def looks_like_zip(uri: str) -> bool:
    """True if the suffix or the first bytes are those of a zip; a photo with a zip appended is a photo."""
    with storage.open_read(uri) as file:
        return file.read(4) in _MAGIC or uri.lower().endswith(".zip")


def check_zip(uri: str) -> None:
    """Raise UsageError unless the index of the zip can be found; `listing` reads its entries."""
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
    """Return a stream of the content of a member, which decompresses it and checks its CRC."""
    if entry.flags & _ENCRYPTED:
        raise RuntimeError("it is encrypted")
    file.seek(entry.header)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:4] != _MAGIC[0]:
        raise zipfile.BadZipFile(f"no header at byte {entry.header}")
    _, name_bytes, extra_bytes = _HEADER.unpack(head)
    file.seek(entry.header + _HEADER.size + name_bytes + extra_bytes)
    info = zipfile.ZipInfo(entry.name)
    info.compress_type = entry.method
    info.compress_size = entry.packed_bytes
    info.file_size = entry.num_bytes
    info.CRC = entry.crc
    return zipfile.ZipExtFile(file, "r", info)


@dataclass(frozen=True)
class _Archive:
    """An open zip with two file positions, so that index and contents keep a fetched block each.

    On S3 the index has no digest and is read with `read_verified`; members have a CRC and are read once.
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
    """Open an archive once per process: a forked child must not share the file position of its parent."""
    return _opened(uri, storage.version(uri), os.getpid())


@lru_cache(maxsize=64)
def _opened(uri: str, version: str, process: int) -> _Archive:
    index = storage.open_read(uri, _BLOCK_BYTES, verified=True)
    return _Archive(index, storage.open_read(uri, _BLOCK_BYTES), find_index(index)[2])
