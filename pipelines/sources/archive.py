"""Photos that are members of a zip: streamed one at a time, never extracted."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import IO, Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.published import INDEX, Index, check_published, index_at, promised
from pipelines.sources.source import PhotoRef, PhotoSource, PhotoUnreadableError, check_size, checked, is_photo
from pipelines.sources.spool import sort_refs
from pipelines.sources.zip_index import entries

_BLOCK_BYTES: Final = 1 << 18  # what is fetched from S3 beyond a member's header: most of what follows it
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
"""RuntimeError: encrypted; NotImplementedError: an exotic compression; ValueError: nonsense in the local header."""
_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")  # a member follows; an empty archive


@dataclass(frozen=True)
class ZipSource(PhotoSource):
    """The members of a zip, local or on S3; `PhotoRef.uri` ends in the member's number, so that equal or odd names stay apart.

    `index` is FFHQ's beside the zip; one inside goes before it.
    """

    uri: str
    every_file: bool = False
    index: str = ""

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the members that may be photos, sorted by name; a name used twice gets `#2` at its second use."""
        inside: list[Index] = []
        refs = sort_refs(self._refs(inside))
        first = list(islice(refs, 1))  # the whole index of the zip is read by then
        index = inside[0] if inside else index_at(self.index)
        yield from promised(chain(first, refs), index, PurePosixPath(self.uri).stem)

    def _refs(self, inside: list[Index]) -> Iterator[PhotoRef]:
        with _readable(self.uri), storage.open_read(self.uri, _BLOCK_BYTES, twice=True) as file:
            for entry in entries(file):
                name, mark = entry.name, f"crc32:{entry.crc:08x}"
                if name.rpartition("/")[2] == INDEX:
                    inside.append(
                        Index(f"{self.uri}#{name}", mark, name.removesuffix(INDEX), open=partial(_open_member, self.uri, entry.number))
                    )
                if not name.endswith("/") and (self.every_file or is_photo(name)):
                    yield PhotoRef(f"{self.uri}#{entry.number}", name, entry.num_bytes, mark)

    def read(self, ref: PhotoRef) -> bytes:
        """Read one member; its CRC is checked, by the reader against the zip and here against the listing.

        One that comes from S3 with another CRC is read again, twice: only what the server itself holds is the photo's fault.
        """
        check_size(ref)
        gone = f"{ref.name} changed in {self.uri} after it was listed; expected the listed content; run the command again"
        try:
            archive = _open(self.uri)
            members = archive.infolist()
            number = int(ref.uri.rpartition("#")[2])
            if number >= len(members) or f"crc32:{members[number].CRC:08x}" != ref.fingerprint:
                raise PhotoUnreadableError(gone)
            data = checked(ref, _content(archive, members[number]))
        except (storage.ReplacedError, FileNotFoundError) as error:
            raise PhotoUnreadableError(gone) from error
        except OSError as error:
            if storage.is_remote(self.uri):
                raise
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})") from error
        except _DAMAGE as error:
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} cannot be read ({' '.join(str(error).split())})") from error
        return check_published(ref, data)


def looks_like_zip(uri: str) -> bool:
    """Tell by suffix or by first bytes; a photo with a zip glued to its end is a photo."""
    with storage.open_read(uri) as file:
        return file.read(4) in _MAGIC or uri.lower().endswith(".zip")


def check_zip(uri: str) -> None:
    """Raise UsageError unless the archive's index can be found; its entries are read when it is listed."""
    with _readable(uri), storage.open_read(uri, _BLOCK_BYTES, twice=True) as file:
        next(entries(file), None)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UsageError(f"{uri} is no readable zip ({error}); expected a whole zip archive; copy or download it again") from error


@contextlib.contextmanager
def _open_member(uri: str, number: int) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(storage.open_read(uri, _BLOCK_BYTES, twice=True)) as archive, archive.open(archive.infolist()[number]) as file:
        yield file


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(member)
    except _DAMAGE:
        file: object = archive.fp
        if not isinstance(file, storage.RemoteFile):
            raise
        file.forget()
        file.twice = True
        try:
            return archive.read(member)
        finally:
            file.twice = False


def _open(uri: str) -> zipfile.ZipFile:
    """Open an archive once a process: its index is read only once, and a forked child does not share the parent's file position."""
    return _opened(uri, storage.version(uri), os.getpid())


@lru_cache(maxsize=8)
def _opened(uri: str, version: str, process: int) -> zipfile.ZipFile:
    """Read the index, from S3 twice, for it carries no digest; the members do, and are then read once."""
    file = storage.open_read(uri, _BLOCK_BYTES, twice=True)
    archive = zipfile.ZipFile(file)
    if isinstance(file, storage.RemoteFile):
        file.twice = False
    return archive
