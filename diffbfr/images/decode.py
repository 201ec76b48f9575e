"""Decode untrusted bytes to upright 8-bit RGB pixels, or refuse them with a reason.

Pillow opens the file behind an allow-list of formats; the number of pixels is read from the header before
anything is decoded. Of a file with several frames (GIF, WebP, APNG, TIFF, MPO) the first is taken.

Values are taken as stored: an embedded colour profile is returned (`Decoded.icc`) and never applied. So a
face and its low-quality version share their colour space, whichever it is, and the colour arithmetic of no
library changes the bytes of a dataset.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from PIL import Image, TiffImagePlugin

from diffbfr.images.convert import Pixels
from diffbfr.images.errors import ImageRefused

AlphaPolicy: TypeAlias = Literal["white", "black", "drop", "refuse"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded file: upright RGB pixels (uint8 [h, w, 3], maybe read-only) and properties of the file.

    `was_gray`: all three channels are equal everywhere, however the file stored them. `icc`: the embedded
    profile where it describes RGB.
    """

    pixels: Pixels
    format: str
    was_gray: bool
    icc: bytes | None


def decode(
    data: bytes, *, max_pixels: int = 100_000_000, min_px: int = 1, alpha: AlphaPolicy = "white"
) -> Decoded:
    """Decode one file to upright 8-bit RGB pixels, or raise `ImageRefused`.

    16-bit gray is scaled (65535 becomes 255), never clipped; palette, gray and CMYK become RGB; transparent
    pixels are laid over white or black, lose their transparency, or are refused. `max_pixels` and `min_px`
    (the shorter side) are checked on the header.
    """
    file_format = _format_by_signature(data)
    if file_format == "WEBP":
        _check_webp_header(data, max_pixels)
    with warnings.catch_warnings():
        # Pillow warns about sizes below our own limit and about damaged tags that do not matter.
        warnings.simplefilter("ignore")
        image = _open(data, file_format)
        _check_size(image.size, max_pixels, min_px)
        _load(image, data, file_format)
        image_mode, icc = image.mode, image.info.get("icc_profile")
        pixels = _convert(image, file_format, alpha)
    describes_rgb = isinstance(icc, bytes) and icc[16:20] == b"RGB " and image_mode != "CMYK"
    return Decoded(
        pixels=pixels, format=file_format, was_gray=_is_gray(pixels), icc=icc if describes_rgb else None
    )


_SIGNATURES: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBPVP8", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
)
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_OTHER_SIGNATURES: Final = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyp", "HEIC or a video"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"qoif", "QOI"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"<svg", "SVG"),
)


def _format_by_signature(data: bytes) -> str:
    if not data:
        raise ImageRefused("empty", "the file holds 0 bytes; expected a picture")
    for offset, magic, name in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return name
    wanted = f"expected {', '.join(_FORMATS)}"
    for offset, magic, name in _OTHER_SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            raise ImageRefused("unsupported_format", f"the file is {name}; {wanted}; convert it first")
    raise ImageRefused("not_an_image", f"the file starts with {data[:8]!r}, which is no picture; {wanted}")


def _check_webp_header(data: bytes, max_pixels: int) -> None:
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
    _check_size((width, height), max_pixels, min_px=1)


def _open(data: bytes, file_format: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageRefused("too_many_pixels", f"the header claims too many pixels ({error})") from error
    except MemoryError:
        raise
    except Exception as error:
        # A parser of damaged bytes may raise anything, and one bad file must not end a shard.
        if _ends_early(data, file_format):
            raise ImageRefused(
                "truncated", f"the {file_format} file ends early, after {len(data)} bytes"
            ) from error
        raise ImageRefused(
            "corrupt", f"the header of the {file_format} file is damaged; the picture cannot be opened"
        ) from error


def _check_size(size: tuple[int, int], max_pixels: int, min_px: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageRefused(
            "too_many_pixels",
            f"the header claims {width} x {height} pixels; at most {max_pixels} are decoded",
        )
    if min(width, height) < min_px:
        raise ImageRefused(
            "too_small", f"the picture is {width} x {height}; at least {min_px} px a side are wanted"
        )


def _load(image: Image.Image, data: bytes, file_format: str) -> None:
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageRefused("too_many_pixels", f"the picture unfolds to too many pixels ({error})") from error
    except MemoryError:
        raise
    except Exception as error:  # as in _open
        if "truncated" in str(error).lower() or _ends_early(data, file_format):
            raise ImageRefused(
                "truncated", f"the {file_format} file ends early, after {len(data)} bytes ({error})"
            ) from error
        raise ImageRefused(
            "corrupt", f"the pixels of the {file_format} file cannot be decoded ({error})"
        ) from error


def _ends_early(data: bytes, file_format: str) -> bool:
    """Whether the end mark is missing from a file that failed to decode: it was cut, not damaged."""
    if file_format == "TIFF" and len(data) >= 8:
        directory = struct.unpack_from("<I" if data[:2] == b"II" else ">I", data, 4)[0]
        return bool(directory >= len(data))
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
    tail = data.rstrip(b"\0")[-12:] if file_format == "PNG" else data.rstrip(b"\0")[-2:]
    return file_format in ends and ends[file_format] not in tail


_ORIENTATION: Final = 0x0112
_UPRIGHT_BY: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation that is left after loading (TIFF files are turned by Pillow itself)."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels: keep them as stored.
        orientation = 1
    return image.transpose(_UPRIGHT_BY[orientation]) if orientation in _UPRIGHT_BY else image


def _convert(image: Image.Image, file_format: str, alpha: AlphaPolicy) -> Pixels:
    try:
        return _to_rgb(_upright(image), alpha)
    except (ImageRefused, MemoryError):
        raise
    except Exception as error:
        # As in `_open`: a palette or a transparent colour may be damaged where the pixels are not.
        raise ImageRefused(
            "corrupt", f"the pixels of the {file_format} file cannot be brought to RGB ({error})"
        ) from error


def _to_rgb(image: Image.Image, alpha: AlphaPolicy) -> Pixels:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return _deep_gray_to_rgb(image, alpha)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _lay_over(np.asarray(image if image.mode == "RGBA" else image.convert("RGBA")), alpha)
    if image.mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    raise ImageRefused(
        "unsupported_pixels",
        f"pixels of kind {image.mode!r} have no agreed white; save the picture with 8 or 16 bits",
    )


def _deep_gray_to_rgb(image: Image.Image, alpha: AlphaPolicy) -> Pixels:
    """Scale gray of 12 or 16 bits to 8; a TIFF may count from white, a PNG may name one level transparent."""
    white, white_is_zero = 0xFFFF, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        white = (1 << tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1
        white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    levels = np.minimum(np.arange(1 << 16, dtype=np.uint32), white)
    scaled = ((levels * 255 + white // 2) // white).astype(np.uint8)
    clear = image.info.get("transparency")
    opacity = np.where(np.arange(1 << 16) == clear, 0, 255).astype(np.uint8)
    table = np.stack(
        [255 - scaled if white_is_zero else scaled] * 3 + ([] if clear is None else [opacity]), axis=1
    )
    deep = np.asarray(image)
    converted = np.empty((*deep.shape, table.shape[1]), np.uint8)
    # An index of the whole image would take eight times the memory of its levels.
    for top in range(0, deep.shape[0], _ROWS_AT_ONCE):
        converted[top : top + _ROWS_AT_ONCE] = table[deep[top : top + _ROWS_AT_ONCE]]
    return converted if clear is None else _lay_over(converted, alpha)


_ROWS_AT_ONCE: Final = 64


def _lay_over(rgba: Pixels, alpha: AlphaPolicy) -> Pixels:
    colour, opacity = rgba[..., :3], rgba[..., 3:]
    if alpha == "drop" or (opacity == 255).all():
        return np.ascontiguousarray(colour)
    if alpha == "refuse":
        raise ImageRefused("has_alpha", "the picture has transparent pixels; expected an opaque one")
    ground = 255 if alpha == "white" else 0
    # 16 bits suffice: with the terms below the values are at most 255 * 255 + 127.
    blended = np.multiply(colour, opacity, dtype=np.uint16)
    blended += (255 - opacity) * np.uint16(ground) + np.uint16(127)
    blended //= 255
    return blended.astype(np.uint8)


def _is_gray(pixels: Pixels) -> bool:
    sparse = pixels[::16, ::16]  # settles nearly every colour picture without reading it whole
    return all(bool((part[..., :1] == part).all()) for part in (sparse, pixels))
