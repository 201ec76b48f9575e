"""Decode untrusted bytes to upright 8-bit RGB pixels, or refuse them with a reason.

Pillow opens the file as the one format that its first bytes name; the number of pixels is read from the
header before anything is decoded. Of a file with several frames (GIF, WebP, APNG, AVIF, MPO) the first is
taken, of a TIFF the largest page that is no reduced version of another.

Values are taken as stored: an embedded colour profile is returned (`Decoded.icc`) and never applied. So a
face and its low-quality version share their colour space, whichever it is, and the colour arithmetic of no
library changes the bytes of a dataset.

A decoder that is attacked can still crash, hang or exhaust memory, so a pipeline calls this in a process of
its own (`pipelines.sources.sandbox`).
"""

import struct
import warnings
from dataclasses import dataclass

import numpy as np

from diffbfr.images.convert import Pixels
from diffbfr.images.errors import ImageRefused
from diffbfr.images.jpeg_markers import end_variants, has_end, read_frame
from diffbfr.images.metadata import kept_density, kept_exif, kept_icc
from diffbfr.images.opening import load_image, open_image, turn_to
from diffbfr.images.png_chunks import only_pixels, without_bad_chunks
from diffbfr.images.rgb import AlphaPolicy, is_gray, to_rgb
from diffbfr.images.signature import format_of
from diffbfr.images.tiff_pages import main_page, read_pages


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded file: upright RGB pixels (uint8 [h, w, 3], maybe read-only) and properties of the file.

    `was_gray`: all three channels are equal everywhere, however the file stored them. `alpha`: the opacity of
    each pixel (uint8 [h, w]) where any is transparent. `icc`: the embedded profile where it describes RGB.
    `exif`: date and camera. `dpi`: pixels per inch across and down. `notes`: a sentence for each thing that
    was left out of the file.
    """

    pixels: Pixels
    format: str
    was_gray: bool
    icc: bytes | None
    alpha: Pixels | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def decode(
    data: bytes, *, max_pixels: int = 100_000_000, min_px: int = 1, alpha: AlphaPolicy = "white"
) -> Decoded:
    """Decode one file to upright 8-bit RGB pixels, or raise `ImageRefused`.

    16-bit gray is scaled (65535 becomes 255), never clipped; palette, gray and CMYK become RGB; transparent
    pixels are laid over white or black, lose their transparency, or are refused. `max_pixels` and `min_px`
    (the shorter side) are checked on the header.
    """
    file_format = format_of(data)
    limits = _Limits(max_pixels, min_px)
    with warnings.catch_warnings():
        # Pillow warns about sizes below our own limit and about damaged tags that do not matter.
        warnings.simplefilter("ignore")
        if file_format == "PNG":
            return _decode_png(data, limits, alpha)
        if file_format == "JPEG":
            return _decode_jpeg(data, limits, alpha)
        if file_format == "TIFF":
            return _decode_tiff(data, limits, alpha)
        if file_format == "WEBP":
            _check_webp_header(data, limits)
        return _decode(data, file_format, limits, alpha)


@dataclass(frozen=True)
class _Limits:
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


def _decode(
    data: bytes,
    file_format: str,
    limits: _Limits,
    alpha: AlphaPolicy,
    notes: tuple[str, ...] = (),
    page: int = 0,
) -> Decoded:
    image = open_image(data, file_format)
    if page:
        turn_to(image, page, data, file_format)
    limits.check(image.size)
    exif = kept_exif(image) if file_format == "TIFF" else None  # Pillow closes the file when it has loaded it
    load_image(image, data, file_format)
    icc, about_icc = kept_icc(image)
    pixels, opacity = to_rgb(image, file_format, alpha)
    return Decoded(
        pixels=pixels,
        format=file_format,
        was_gray=is_gray(pixels),
        icc=icc,
        alpha=opacity,
        exif=kept_exif(image) if exif is None else exif,
        dpi=kept_density(image),
        notes=(*notes, *about_icc),
    )


def _decode_png(data: bytes, limits: _Limits, alpha: AlphaPolicy) -> Decoded:
    """Decode a PNG; ancillary chunks that cannot be used are left out."""
    sound, notes = without_bad_chunks(data)
    try:
        return _decode(sound, "PNG", limits, alpha, notes)
    except ImageRefused as refusal:
        bare = only_pixels(data)
        if refusal.reason_code not in ("corrupt", "truncated") or len(bare) == len(data):
            raise
        try:
            return _decode(bare, "PNG", limits, alpha, ("unusable PNG chunks were left out",))
        except ImageRefused:
            raise refusal from None


def _decode_jpeg(data: bytes, limits: _Limits, alpha: AlphaPolicy) -> Decoded:
    """Decode a JPEG, also one that lacks only its end marker."""
    try:
        if has_end(data):
            return _decode(data, "JPEG", limits, alpha)
        return _decode_endless_jpeg(data, limits, alpha)
    except ImageRefused as refusal:
        frame = read_frame(data) if refusal.reason_code in ("corrupt", "truncated") else None
        if frame is None or frame.kind is None:
            raise
        raise ImageRefused(
            "unsupported_pixels", f"the file is {frame.kind}; expected one of 8 bits; save it as such"
        ) from refusal


def _decode_endless_jpeg(data: bytes, limits: _Limits, alpha: AlphaPolicy) -> Decoded:
    """Decode a JPEG without end marker if every row is there: then no added bytes change a pixel."""
    variants = end_variants(data)
    if variants:
        first, *others = (_decode(variant, "JPEG", limits, alpha) for variant in variants)
        if all(np.array_equal(other.pixels, first.pixels) for other in others):
            return first
    else:
        limits.check(open_image(data, "JPEG").size)
    raise ImageRefused("truncated", f"the JPEG file ends early, after {len(data)} bytes: rows are missing")


def _decode_tiff(data: bytes, limits: _Limits, alpha: AlphaPolicy) -> Decoded:
    """Decode the largest page of a TIFF that is no reduced version."""
    pages = read_pages(data)
    if not pages:
        return _decode(data, "TIFF", limits, alpha)  # Pillow says why
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
    return _decode(data, "TIFF", limits, alpha, notes, number)


def _check_webp_header(data: bytes, limits: _Limits) -> None:
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
    _Limits(limits.max_pixels, min_px=1).check((width, height))
