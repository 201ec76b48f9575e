"""Load the photo of an untrusted file with Pillow, or refuse the file with a reason.

Pillow opens the file as the one format that its first bytes name; the number of pixels is read from the
header before anything is decoded. Of a file with several frames (GIF, WebP, APNG, AVIF, MPO) the first is
taken, of a TIFF the largest page that is no reduced version of another.
"""

import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from diffbfr.images.errors import ImageRefused
from diffbfr.images.jpeg_markers import end_variants, has_end, read_frame
from diffbfr.images.metadata import kept_exif
from diffbfr.images.opening import load_image, mend_planes, open_image, turn_to
from diffbfr.images.png_chunks import only_pixels, without_bad_chunks
from diffbfr.images.signature import format_of
from diffbfr.images.tiff_pages import main_page, read_pages

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded file as Pillow holds it, not yet upright.

    `data` are the bytes that Pillow read, without chunks that cannot be used; `page` is the one of a TIFF
    that was taken. `exif` is date and camera of a TIFF, whose tags cannot be read any more. `notes` say in
    sentences what was left out.
    """

    image: Image.Image
    format: str
    data: bytes
    page: int
    exif: bytes | None
    notes: tuple[str, ...]


Take: TypeAlias = Callable[[Loaded], T]
"""What is made of a loaded file; where it refuses one as corrupt, a more careful loading is tried."""


@dataclass(frozen=True)
class Limits:
    """Most pixels of a photo, and least pixels of its shorter side; checked on the header."""

    max_pixels: int
    min_px: int

    def check(self, size: tuple[int, int]) -> None:
        width, height = size
        if width * height > self.max_pixels:
            raise ImageRefused(
                "too_many_pixels",
                f"the header claims {width} x {height} pixels; at most {self.max_pixels} are decoded",
            )
        if min(width, height) < self.min_px:
            raise ImageRefused(
                "too_small",
                f"the picture is {width} x {height}; at least {self.min_px} px a side are wanted",
            )


def load(data: bytes, limits: Limits, take: Take[T]) -> T:
    """Load one file and return what `take` makes of it, or raise `ImageRefused`."""
    file_format = format_of(data)
    with warnings.catch_warnings():
        # Pillow warns about sizes below our own limit and about damaged tags that do not matter.
        warnings.simplefilter("ignore")
        if file_format == "PNG":
            return _load_png(data, limits, take)
        if file_format == "JPEG":
            return _load_jpeg(data, limits, take)
        if file_format == "TIFF":
            return _load_tiff(data, limits, take)
        if file_format == "WEBP":
            _check_webp_header(data, limits)
        return _load(data, file_format, limits, take)


def _load(
    data: bytes, file_format: str, limits: Limits, take: Take[T], notes: tuple[str, ...] = (), page: int = 0
) -> T:
    image = open_image(data, file_format)
    if page:
        turn_to(image, page, data, file_format)
    limits.check(image.size)
    mend_planes(image)
    exif = kept_exif(image) if file_format == "TIFF" else None  # Pillow closes the file when it has loaded it
    load_image(image, data, file_format)
    return take(Loaded(image, file_format, data, page, exif, notes))


def _load_png(data: bytes, limits: Limits, take: Take[T]) -> T:
    """Load a PNG; ancillary chunks that cannot be used are left out."""
    sound, notes = without_bad_chunks(data)
    try:
        return _load(sound, "PNG", limits, take, notes)
    except ImageRefused as refusal:
        bare = only_pixels(data)
        if refusal.reason_code not in ("corrupt", "truncated") or len(bare) == len(data):
            raise
        try:
            return _load(bare, "PNG", limits, take, ("unusable PNG chunks were left out",))
        except ImageRefused:
            raise refusal from None


def _load_jpeg(data: bytes, limits: Limits, take: Take[T]) -> T:
    """Load a JPEG, also one that lacks only its end marker."""
    try:
        if has_end(data):
            return _load(data, "JPEG", limits, take)
        return _load_endless_jpeg(data, limits, take)
    except ImageRefused as refusal:
        frame = read_frame(data) if refusal.reason_code in ("corrupt", "truncated") else None
        if frame is None or frame.kind is None:
            raise
        raise ImageRefused(
            "unsupported_pixels", f"the file is {frame.kind}; expected one of 8 bits; save it as such"
        ) from refusal


def _load_endless_jpeg(data: bytes, limits: Limits, take: Take[T]) -> T:
    """Load a JPEG without end marker if every row is there: then no added bytes change a pixel."""
    variants = end_variants(data)
    if variants:
        first, *others = (_load(variant, "JPEG", limits, _same) for variant in variants)
        pixels = np.asarray(first.image)
        if all(np.array_equal(np.asarray(other.image), pixels) for other in others):
            return take(first)
    else:
        limits.check(open_image(data, "JPEG").size)
    raise ImageRefused("truncated", f"the JPEG file ends early, after {len(data)} bytes: rows are missing")


def _load_tiff(data: bytes, limits: Limits, take: Take[T]) -> T:
    """Load the largest page of a TIFF that is no reduced version."""
    pages = read_pages(data)
    if not pages:
        return _load(data, "TIFF", limits, take)  # Pillow says why
    number = main_page(pages)
    page = pages[number]
    if any(page.is_raw for page in pages):
        raise ImageRefused(
            "unsupported_format",
            "the file is a camera's raw file; expected a developed picture; convert it first",
        )
    if page.is_float:
        raise ImageRefused(
            "unsupported_pixels",
            "pixels of floating point have no agreed white; save the picture with 8 or 16 bits",
        )
    notes = (f"page {number + 1} of {len(pages)} was taken, the largest",) if number else ()
    return _load(data, "TIFF", limits, take, notes, number)


def _check_webp_header(data: bytes, limits: Limits) -> None:
    """Check the size in a WebP header before Pillow opens it: its decoder allocates the canvas on opening."""
    if len(data) < 30 or len(data) < struct.unpack_from("<I", data, 4)[0] + 8:
        raise ImageRefused(
            "truncated", f"the file ends early: {len(data)} bytes, fewer than its header promises"
        )
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    Limits(limits.max_pixels, min_px=1).check((width, height))


def _same(loaded: Loaded) -> Loaded:
    return loaded
