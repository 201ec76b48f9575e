"""Photos that are members of a zip: streamed one at a time, never extracted."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.sources.source import PhotoRef, PhotoSource, PhotoUnreadableError, check_size, checked, distinct, is_photo

_BLOCK_BYTES: Final = 1 << 18  # what is fetched from S3 beyond a member's header: most of what follows it
_DAMAGE: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
"""RuntimeError: encrypted; NotImplementedError: an exotic compression; ValueError: nonsense in the local header."""
_UTF8_FLAG: Final = 0x800
_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")  # a member follows; an empty archive


@dataclass(frozen=True)
class ZipSource(PhotoSource):
    """The members of a zip, local or on S3; `PhotoRef.uri` ends in the member's number, so that equal or odd names stay apart."""

    uri: str
    every_file: bool = False

    def listing(self) -> Iterator[PhotoRef]:
        """Yield the members that may be photos, sorted by name; a name used twice gets `#2` at its second use."""
        refs: dict[str, PhotoRef] = {}
        for number, member in enumerate(_open(self.uri).infolist()):
            name = _name(member)
            if member.is_dir() or not (self.every_file or is_photo(name)):
                continue
            shown = distinct(name, refs)
            refs[shown] = PhotoRef(f"{self.uri}#{number}", shown, member.file_size, f"crc32:{member.CRC:08x}")
        yield from (refs[name] for name in sorted(refs))

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
            return checked(ref, _content(archive, members[number]))
        except (storage.ReplacedError, FileNotFoundError) as error:
            raise PhotoUnreadableError(gone) from error
        except OSError as error:
            if storage.is_remote(self.uri):
                raise
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} cannot be read ({error.strerror or error})") from error
        except _DAMAGE as error:
            raise PhotoUnreadableError(f"{ref.name} in {self.uri} cannot be read ({' '.join(str(error).split())})") from error


def looks_like_zip(uri: str) -> bool:
    """Tell by suffix or by first bytes; a photo with a zip glued to its end is a photo."""
    with storage.open_read(uri) as file:
        return file.read(4) in _MAGIC or uri.lower().endswith(".zip")


def check_zip(uri: str) -> None:
    """Raise UsageError unless the archive's index can be read."""
    try:
        _open(uri)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UsageError(f"{uri} is no readable zip ({error}); expected a whole zip archive; copy or download it again") from error


def _name(member: zipfile.ZipInfo) -> str:
    """Decode a member's name: UTF-8 where flagged or where it happens to be valid (macOS sets no flag), else cp437 as the format says."""
    if member.flag_bits & _UTF8_FLAG:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


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
