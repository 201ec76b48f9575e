"""A restored photo in the format of its input, or in another that holds what the input has.

JPEG, PNG, WebP and TIFF are written back as such; a photo in any other format (BMP, GIF, PNM, TGA, AVIF,
JPEG 2000) becomes PNG. All but JPEG are written losslessly, so that no pixel outside of the faces changes.
This holds for WebP too, whose lossy files do not say at which quality they were made: theirs grow. A JPEG
gets the quantisation tables and the sampling of the input (4:4:4 where Pillow cannot write that sampling), or
quality 95 and 4:4:4 if the input was none. Encoded again, it changes least where its blocks are those of the
input: so pixels that the input's EXIF turns are stored as they were there, with the same orientation. In all
other formats they are stored upright. A TIFF stays uncompressed if it was, and is deflated otherwise.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffbfr.images import CODECS, ImageRefused
from diffbfr.images.deep_png import encode_deep_png
from diffbfr.images.jpeg_coding import JpegCoding
from diffbfr.images.metadata import oriented_exif
from diffbfr.images.orientation import SWAPS_AXES, turned_back
from diffbfr.images.photo import PhotoPixels, SourcePhoto
from diffbfr.images.tiff_writer import encode_tiff
from pipelines.restoration.provenance import XMP_KEYWORD, Provenance

WantedFormat: TypeAlias = Literal["png", "jpeg", "webp"]
WrittenFormat: TypeAlias = Literal["jpeg", "png", "webp", "tiff"]

SUFFIXES: Final[Mapping[WrittenFormat, tuple[str, ...]]] = MappingProxyType(
    {
        "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "png": (".png",),
        "webp": (".webp",),
        "tiff": (".tif", ".tiff"),
    }
)
"""Of each format; the first is given to files that had another."""
_OWN_FORMAT: Final[Mapping[str, WrittenFormat]] = MappingProxyType(
    {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "TIFF": "tiff"}
)
_NAMES: Final[Mapping[WrittenFormat, str]] = MappingProxyType(
    {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "tiff": "TIFF"}
)
_MOST_PX: Final[Mapping[WrittenFormat, int]] = MappingProxyType({"jpeg": 65_500, "webp": 16_383})
"""A side, by libjpeg and by the format."""
_SAMPLINGS: Final[Mapping[tuple[int, int], int]] = MappingProxyType({(1, 1): 0, (2, 1): 1, (2, 2): 2})
"""Pixels for a sample of chroma -> Pillow's number."""
_QUALITY: Final = 95
_MOST_JPEG_DPI: Final = 65_535


@dataclass(frozen=True)
class EncodedPhoto:
    """The bytes of an output, their format, and a sentence for each thing that it could not take over."""

    data: bytes
    format: WrittenFormat
    notes: tuple[str, ...] = ()


def written_format(source: str, wanted: WantedFormat | None = None) -> WrittenFormat:
    """Return the format of an output: the wanted one, else the input's (`SourcePhoto.format`), else PNG."""
    return wanted or _OWN_FORMAT.get(source, "png")


def check_holds(photo: SourcePhoto, file_format: WrittenFormat, upscale: int = 1) -> None:
    """`ImageRefused` if a format cannot hold what a photo has: its 16 bits, its transparency or its size."""
    _check_holds(photo.pixels, file_format, upscale)


def encode_photo(
    photo: SourcePhoto, pixels: PhotoPixels, provenance: Provenance | None, file_format: WrittenFormat
) -> EncodedPhoto:
    """Encode the restored pixels of a photo, of its depth and channels, with what is kept of its metadata.

    `provenance` is None for a photo in which no model changed a pixel. The same arguments give the same
    bytes. `ImageRefused` as in `check_holds`.
    """
    if pixels.dtype != photo.pixels.dtype or pixels.shape[2:] != photo.pixels.shape[2:]:
        raise ValueError(
            f"the pixels are {pixels.dtype} {pixels.shape}; the photo's differ in depth or channels"
        )
    _check_holds(pixels, file_format)
    encode, shown = _ENCODERS[file_format], pixels
    if file_format == "jpeg" and photo.alpha is not None:
        shown = pixels[..., 0] if photo.is_gray else pixels[..., :3]
    notes = []
    icc = photo.icc
    if icc is not None and photo.is_gray and file_format == "webp" and icc[16:20] == b"GRAY":
        icc = None
        notes.append("its colour profile of gray was left out; WebP has colours only")
    if photo.dpi is not None and file_format == "webp":
        notes.append("its density was left out; WebP has none")
    kept = _Kept(icc, photo.exif, photo.dpi, None if provenance is None else provenance.xmp().encode())
    return EncodedPhoto(encode(photo, np.ascontiguousarray(shown), kept), file_format, tuple(notes))


@dataclass(frozen=True)
class _Kept:
    icc: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None
    xmp: bytes | None

    def options(self, *names: str) -> dict[str, Any]:
        """What there is of it, by the names of Pillow's encoders."""
        values = {"icc_profile": self.icc, "exif": self.exif, "dpi": self.dpi, "xmp": self.xmp}
        return {name: values[name] for name in names if values[name] is not None}


def _jpeg(photo: SourcePhoto, pixels: PhotoPixels, kept: _Kept) -> bytes:
    options = kept.options("icc_profile", "exif", "dpi", "xmp")
    if kept.dpi is not None and max(kept.dpi) > _MOST_JPEG_DPI:
        del options["dpi"]
    coding = photo.jpeg
    if coding is not None and photo.orientation != 1:
        pixels = turned_back(pixels, photo.orientation)
        options["exif"] = oriented_exif(kept.exif, photo.orientation)
        if "dpi" in options and photo.orientation in SWAPS_AXES:
            options["dpi"] = options["dpi"][::-1]
    if coding is None:
        return _saved(pixels, "JPEG", quality=_QUALITY, subsampling=0, **options)
    options |= _coded(coding, is_gray=pixels.ndim == 2)
    try:
        return _saved(pixels, "JPEG", progressive=coding.progressive, **options)
    except OSError:
        if not coding.progressive:
            raise
        # Pillow's buffer for a progressive file is too small for very fine tables
        return _saved(pixels, "JPEG", **options)


def _coded(coding: JpegCoding, *, is_gray: bool) -> dict[str, Any]:
    """The tables and the sampling, as Pillow takes them: the last table serves all further components."""
    tables = [list(table) for table in coding.tables[: 1 if is_gray else 3]]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    sampling = 0 if coding.rgb else _SAMPLINGS.get(coding.sampling, 0)
    return {"qtables": tables, "subsampling": sampling, "keep_rgb": coding.rgb and not is_gray}


def _png(photo: SourcePhoto, pixels: PhotoPixels, kept: _Kept) -> bytes:
    info = PngInfo()
    # uncompressed, as XMP prescribes for PNG
    if kept.xmp is not None:
        info.add_itxt(XMP_KEYWORD, kept.xmp.decode())
    options = kept.options("icc_profile", "exif", "dpi")
    level = CODECS["png"]["compress_level"]
    if pixels.dtype == np.uint8:
        return _saved(pixels, "PNG", pnginfo=info, compress_level=level, **options)
    described = _saved(np.zeros((1, 1), np.uint8), "PNG", pnginfo=info, **options)
    return encode_deep_png(pixels, described)


def _webp(photo: SourcePhoto, pixels: PhotoPixels, kept: _Kept) -> bytes:
    if photo.is_gray:
        colour = np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, axis=2)
        pixels = colour if photo.alpha is None else np.dstack([colour, pixels[..., 1:]])
    options = kept.options("icc_profile", "exif", "xmp")
    return _saved(pixels, "WEBP", lossless=True, exact=True, **CODECS["webp"], **options)


def _tiff(photo: SourcePhoto, pixels: PhotoPixels, kept: _Kept) -> bytes:
    return encode_tiff(
        pixels, compressed=photo.compressed, icc=kept.icc, exif=kept.exif, dpi=kept.dpi, xmp=kept.xmp
    )


_ENCODERS: Final[Mapping[WrittenFormat, Callable[[SourcePhoto, PhotoPixels, _Kept], bytes]]] = (
    MappingProxyType({"jpeg": _jpeg, "png": _png, "webp": _webp, "tiff": _tiff})
)


def _saved(pixels: PhotoPixels, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _check_holds(pixels: PhotoPixels, file_format: WrittenFormat, upscale: int = 1) -> None:
    name, advice = _NAMES[file_format], "choose --format png, or leave it out"
    if pixels.dtype == np.uint16 and file_format in ("jpeg", "webp"):
        raise ImageRefused(
            "unsupported_pixels", f"the photo has 16 bits a channel, and {name} holds 8; {advice}"
        )
    has_alpha = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    if file_format == "jpeg" and has_alpha and bool((pixels[..., -1] < 255).any()):
        raise ImageRefused("has_alpha", f"the photo has transparent pixels, and {name} holds none; {advice}")
    height, width = (side * upscale for side in pixels.shape[:2])
    most = _MOST_PX.get(file_format)
    if most is not None and max(height, width) > most:
        raise ImageRefused(
            "too_many_pixels",
            f"the output has {width} x {height} pixels, and {name} holds {most} a side; choose --format png",
        )
