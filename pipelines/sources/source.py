"""The interface of a source of photos: a listing of `PhotoRef`s and a method to read each of them."""

import hashlib
import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from diffbfr.errors import DiffBFRError, UsageError

MAX_PHOTO_BYTES: Final = 1 << 29

_PHOTOGRAPHIC: Final = (
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .tif .tiff .gif .pbm .pgm .ppm .pnm .tga "
    ".heic .heif .avif .jp2 .j2k .jxl"
)
IMAGE_SUFFIXES: Final = frozenset(_PHOTOGRAPHIC.split())
"""Suffixes of the files that a listing shows as photos.

Some are formats that the decoder refuses, so that such files are quarantined and not silently left out.
"""


class PhotoUnreadableError(DiffBFRError):
    """The bytes of one photo cannot be read: a damaged archive member, a removed or changed file."""


class ArchiveUnreadableError(UsageError):
    """A zip or tar that cannot be listed: cut, damaged, or none at all."""


@dataclass(frozen=True)
class PhotoRef:
    """One photo in a listing: its name relative to the source, and the place from which it is read.

    `name` keeps its Unicode form. `bytes` is the listed size (0 for a procedural face). `fingerprint` changes
    with the content and is known without reading it. `file_md5` and `pixel_md5` are the published checksums
    of the file and of its RGB pixels, "" if there are none. `skipped` says why an input is no photo and is
    never read (`pipelines/sources/skipping.py`), "" for a photo.
    """

    uri: str
    name: str
    bytes: int
    fingerprint: str
    file_md5: str = ""
    pixel_md5: str = ""
    skipped: str = ""


class PhotoSource(ABC):
    """A listing of photos and a method to read them; can be pickled. `uri` opens the source again.

    `encodes_itself`: equal pixels always come as equal bytes, because the source encodes them; the digest of
    a photo's bytes then says as much as that of its pixels.
    """

    uri: str
    encodes_itself: ClassVar[bool] = False

    @abstractmethod
    def listing(self) -> Iterator[PhotoRef]:
        """Yield the photos, sorted by name, each name once."""

    @abstractmethod
    def read(self, ref: PhotoRef) -> bytes:
        """Return the bytes of a photo; `PhotoUnreadableError` if that fails or they are not as listed."""

    def refs(self) -> Iterator[PhotoRef]:
        """Yield the photos and what is skipped, sorted by name; UsageError at the end without a photo."""
        empty = True
        for ref in self.listing():
            empty = empty and ref.skipped != ""
            yield ref
        if empty:
            raise UsageError(
                f"{self.uri} holds no images; expected files such as .png, .jpg or .webp; "
                f"name a folder or zip of photos, or several zips as '*.zip'"
            )

    def digest(self) -> str:
        """Return the sha256 of the listing: names, sizes, fingerprints and published checksums."""
        summer = hashlib.sha256()
        for ref in self.refs():
            published = f"\0{ref.file_md5}\0{ref.pixel_md5}" if ref.file_md5 or ref.pixel_md5 else ""
            summer.update(
                f"{len(ref.name)}\0{ref.name}\0{ref.bytes}\0{ref.fingerprint}{published}\n".encode(
                    "utf-8", "surrogatepass"
                )
            )
        return summer.hexdigest()


def printable_name(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_photo(name: str) -> bool:
    """True if a listing of photos shows this name: it is not hidden and has the suffix of an image.

    Code that runs once per photo uses no `PurePath`, which interns its parts for the life of the process.
    """
    parts = name.replace("\\", "/").split("/")
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)
    return not hidden and posixpath.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def check_size(ref: PhotoRef) -> None:
    """Raise PhotoUnreadableError if a file is too large for a photo."""
    if ref.bytes > MAX_PHOTO_BYTES:
        raise PhotoUnreadableError(
            f"{ref.name} has {ref.bytes} bytes; at most {MAX_PHOTO_BYTES} are read as a photo"
        )


def checked(ref: PhotoRef, data: bytes) -> bytes:
    """Return the data; PhotoUnreadableError unless it has the listed length."""
    if len(data) != ref.bytes:
        raise PhotoUnreadableError(
            f"{ref.name} gave {len(data)} bytes, {ref.bytes} were listed; run the command again"
        )
    return data
