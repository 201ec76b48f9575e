"""What every source of photos is: a listing of `PhotoRef`s and a way to read each of them."""

import hashlib
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from diffbfr.errors import DiffBFRError, UsageError

MAX_PHOTO_BYTES: Final = 1 << 29

_PHOTOGRAPHIC: Final = (
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .tif .tiff .gif .ppm .pgm .heic .heif .avif .jp2 .jxl"
)
IMAGE_SUFFIXES: Final = frozenset(_PHOTOGRAPHIC.split())
"""What a listing shows as a photo. Some are formats that the decoder refuses: they show up in quarantine,
and not nowhere.
"""


class PhotoUnreadableError(DiffBFRError):
    """The bytes of one photo cannot be had: damaged archive member, vanished or changed file."""


@dataclass(frozen=True)
class PhotoRef:
    """One photo in a listing: `name` is relative to the source and keeps its unicode; `uri` is where
    `PhotoSource.read` finds it.

    `bytes` is its size as listed (0 for a procedural face); `fingerprint` changes when the content does,
    without reading it. `file_md5` and `pixel_md5` are what a publisher's index promises of the file and of
    its RGB pixels ("" without one).
    """

    uri: str
    name: str
    bytes: int
    fingerprint: str
    file_md5: str = ""
    pixel_md5: str = ""


class PhotoSource(ABC):
    """A listing of photos and the way to read them; picklable. `uri` opens it again."""

    uri: str

    @abstractmethod
    def listing(self) -> Iterator[PhotoRef]:
        """Yield the photos, sorted by name, each name once."""

    @abstractmethod
    def read(self, ref: PhotoRef) -> bytes:
        """Return the bytes of a listed photo; `PhotoUnreadableError` if they cannot be had or are not
        those that were listed.
        """

    def refs(self) -> Iterator[PhotoRef]:
        """Yield the photos, sorted by name; UsageError at the end if there were none."""
        empty = True
        for ref in self.listing():
            empty = False
            yield ref
        if empty:
            raise UsageError(
                f"{self.uri} holds no images; expected files such as .png, .jpg or .webp; "
                f"name a folder or zip of photos, or several zips as '*.zip'"
            )

    def digest(self) -> str:
        """Return the sha256 of the listing: names, sizes, fingerprints and what is promised of each."""
        summer = hashlib.sha256()
        for ref in self.refs():
            promised = f"\0{ref.file_md5}\0{ref.pixel_md5}" if ref.file_md5 or ref.pixel_md5 else ""
            summer.update(
                f"{len(ref.name)}\0{ref.name}\0{ref.bytes}\0{ref.fingerprint}{promised}\n".encode(
                    "utf-8", "surrogatepass"
                )
            )
        return summer.hexdigest()


def is_photo(name: str) -> bool:
    """Tell whether a listing shows this name when photos are wanted; only names count, content is judged when
    it is decoded.

    Here and wherever there is a name for each photo, no `PurePath` is made: it interns its parts, and Python
    keeps room for all of them.
    """
    parts = name.replace("\\", "/").split("/")
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)
    return not hidden and posixpath.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def check_size(ref: PhotoRef) -> None:
    """Refuse to read what is too large for a photo."""
    if ref.bytes > MAX_PHOTO_BYTES:
        raise PhotoUnreadableError(
            f"{ref.name} has {ref.bytes} bytes; at most {MAX_PHOTO_BYTES} are read as a photo"
        )


def checked(ref: PhotoRef, data: bytes) -> bytes:
    """Return the data if it is as long as listed."""
    if len(data) != ref.bytes:
        raise PhotoUnreadableError(
            f"{ref.name} gave {len(data)} bytes, {ref.bytes} were listed; run the command again"
        )
    return data
