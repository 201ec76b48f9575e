"""Photos that are members of a zip: streamed one at a time, never extracted."""

import contextlib
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import IO, Final

from diffbfr.errors import one_line
from pipelines import storage
from pipelines.sources.listing_db import sort_refs
from pipelines.sources.published import INDEX, Index, attach_checksums, check_published, index_at
from pipelines.sources.skipping import Listing
from pipelines.sources.source import (
    ArchiveUnreadableError,
    PhotoRef,
    PhotoSource,
    PhotoUnreadableError,
    check_size,
    checked,
)
from pipelines.sources.unpack import MemberReader, implausible, read_member
from pipelines.sources.zip_index import ZipEntry, entries, entry_at, find_index

_BLOCK_BYTES: Final = 1 << 18  # fetched from S3 with a member's header: usually the whole member
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)
"""RuntimeError: encrypted, or an unknown compression; ValueError: an invalid local header."""
_MAX_LISTED_BYTES: Final = (1 << 63) - 1  # the ledger has 64 bits for a size
# magic, fields that the index repeats, bytes of the name, bytes of the extra field
_HEADER: Final = struct.Struct("<4s22x2H")
_ENCRYPTED: Final = 1
_BAD: Final = "implausible:"  # begins the fingerprint of an entry that cannot be true
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
        listing = Listing(self.every_file)
        num_packed = 0
        with _readable(self.uri), storage.open_read(self.uri, _BLOCK_BYTES, verified=True) as file:
            end = find_index(file)[0]
            for entry in entries(file):
                name, fingerprint = entry.name, f"crc32:{entry.crc:08x}"
                problem = implausible(entry, end, num_packed)
                num_packed += 0 if problem else entry.packed_bytes
                if name.rpartition("/")[2] == INDEX and not problem:
                    inside.append(
                        Index(
                            f"{self.uri}#{name}",
                            fingerprint,
                            name.removesuffix(INDEX),
                            open=partial(_open_member, self.uri, entry),
                        )
                    )
                place = None if _is_folder(entry) else listing.place_of(name)
                if place is not None:
                    yield PhotoRef(
                        f"{self.uri}#{entry.place}",
                        place[0],
                        min(entry.num_bytes, _MAX_LISTED_BYTES),
                        f"{_BAD}{problem}" if problem else fingerprint,
                        skipped=place[1],
                    )

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member; its CRC must be that of the zip's index and of the listing.

        A member that comes from S3 with another CRC is fetched again with `read_verified`, so that an error
        of the network does not quarantine the photo.
        """
        if ref.fingerprint.startswith(_BAD):
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({ref.fingerprint.removeprefix(_BAD)})"
            )
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
            if not storage.is_about_one_file(error, writing=False):
                raise storage.place_error(self.uri, error, "read") from error
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})"
            ) from error
        except _DAMAGE as error:
            raise PhotoUnreadableError(
                f"{ref.name} in {self.uri} cannot be read ({one_line(error)})"
            ) from error
        return check_published(ref, data)


def _is_folder(entry: ZipEntry) -> bool:
    """True for an empty member whose name ends like a folder's, as PowerShell 5 writes it too (`Album\\`)."""
    return entry.name.endswith(("/", "\\")) and not entry.num_bytes


def looks_like_zip(uri: str) -> bool:
    """True if the suffix or the first bytes are those of a zip; a photo with a zip appended is a photo."""
    with storage.open_read(uri) as file:
        return file.read(4) in _MAGIC or uri.lower().endswith(".zip")


def check_zip(uri: str) -> None:
    """Raise ArchiveUnreadableError unless the index of the zip can be found; `listing` reads its entries."""
    with _readable(uri), storage.open_read(uri, _BLOCK_BYTES, verified=True) as file:
        next(entries(file), None)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ArchiveUnreadableError(
            f"{uri} is no readable zip ({error}); expected a whole zip archive; copy or download it again"
        ) from error


@contextlib.contextmanager
def _open_member(uri: str, entry: ZipEntry) -> Iterator[IO[bytes]]:
    with storage.open_read(uri, _BLOCK_BYTES, verified=True) as file:
        yield io.BufferedReader(MemberReader(_seek_content(file, entry), entry))


def _seek_content(file: IO[bytes], entry: ZipEntry) -> IO[bytes]:
    """Move to the first compressed byte of a member, which its own header tells."""
    if entry.flags & _ENCRYPTED:
        raise RuntimeError("it is encrypted")
    file.seek(entry.header)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:4] != _MAGIC[0]:
        raise zipfile.BadZipFile(f"no header at byte {entry.header}")
    _, name_bytes, extra_bytes = _HEADER.unpack(head)
    file.seek(entry.header + _HEADER.size + name_bytes + extra_bytes)
    return file


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
            return read_member(_seek_content(self.contents, entry), entry)
        except _DAMAGE:
            file: object = self.contents
            if not isinstance(file, storage.RemoteFile):
                raise
            file.forget()
            file.verified = True
            try:
                return read_member(_seek_content(self.contents, entry), entry)
            finally:
                file.verified = False


def _open(uri: str) -> _Archive:
    """Open an archive once per process: a forked child must not share the file position of its parent."""
    return _opened(uri, storage.version(uri), os.getpid())


@lru_cache(maxsize=64)
def _opened(uri: str, version: str, process: int) -> _Archive:
    index = storage.open_read(uri, _BLOCK_BYTES, verified=True)
    return _Archive(index, storage.open_read(uri, _BLOCK_BYTES), find_index(index)[2])
