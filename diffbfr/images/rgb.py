"""A loaded image as upright 8-bit RGB pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from diffbfr.images.convert import Pixels
from diffbfr.images.errors import ImageRefused

DeepPixels: TypeAlias = NDArray[np.uint16]
AlphaPolicy: TypeAlias = Literal["white", "black", "drop", "refuse"]

_ORIENTATION: Final = 0x0112
_ROWS_AT_ONCE: Final = 64
_UPRIGHT_BY: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, file_format: str, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
    """Return a loaded image upright, as RGB (uint8 h w 3), and its opacity (h w) if it is not opaque."""
    with refusing_damage(file_format):
        return _to_rgb(_upright(image), alpha)


@contextmanager
def refusing_damage(file_format: str) -> Iterator[None]:
    """Turn whatever a conversion of loaded pixels raises into an `ImageRefused`."""
    try:
        yield
    except (ImageRefused, MemoryError):
        raise
    except Exception as error:
        # A palette or a transparent colour may be damaged where the pixels are not.
        raise ImageRefused(
            "corrupt", f"the pixels of the {file_format} file cannot be brought to RGB ({error})"
        ) from error


def is_gray(pixels: Pixels) -> bool:
    """Whether all three channels are equal everywhere."""
    sparse = pixels[::16, ::16]  # settles nearly every colour picture without reading it whole
    return all(bool((part[..., :1] == part).all()) for part in (sparse, pixels))


def is_deep_gray(image: Image.Image) -> bool:
    """Whether a loaded image is gray of more than 8 bits."""
    # Pillow scales a PNM of more than 8 bits to 16 and keeps it in 32
    return image.mode in ("I;16", "I;16B", "I;16L", "I;16N") or (image.mode == "I" and image.format == "PPM")


def deep_gray(image: Image.Image) -> DeepPixels:
    """Return gray of more than 8 bits [h, w], not turned, as 16 bits where 0 is black and 65535 white."""
    white, white_is_zero = _white(image)
    levels = _levels(image)
    if white != 0xFFFF:
        levels = ((np.minimum(levels, white).astype(np.uint32) * 0xFFFF + white // 2) // white).astype(
            np.uint16
        )
    return np.uint16(0xFFFF) - levels if white_is_zero else levels


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation that is left after loading, 1 to 8."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels: keep them as stored.
        return 1
    return orientation if orientation in _UPRIGHT_BY else 1


def _levels(image: Image.Image) -> DeepPixels:
    levels: DeepPixels = np.clip(np.asarray(image), 0, 0xFFFF).astype(np.uint16, copy=False)
    return levels


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation that is left after loading (TIFF files are turned by Pillow itself)."""
    orientation = orientation_of(image)
    return image.transpose(_UPRIGHT_BY[orientation]) if orientation in _UPRIGHT_BY else image


def _to_rgb(image: Image.Image, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
    if is_deep_gray(image):
        return _deep_gray_to_rgb(image, alpha)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _lay_over(rgba(image), alpha)
    if image.mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None
    raise unagreed(image)


def unagreed(image: Image.Image) -> ImageRefused:
    """The refusal of pixels of a kind that has no agreed white."""
    return ImageRefused(
        "unsupported_pixels",
        f"pixels of kind {image.mode!r} have no agreed white; save the picture with 8 or 16 bits",
    )


def rgba(image: Image.Image) -> Pixels:
    """Return a loaded image, not turned, as RGB and opacity (uint8 h w 4)."""
    found = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    if image.format == "TGA" and not found[..., 3].any():
        # many programs leave the fourth byte of a TGA unset; as an opacity it would hide the whole picture
        found = found | np.array([0, 0, 0, 255], np.uint8)
    return found


def _deep_gray_to_rgb(image: Image.Image, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
    """Scale gray of 12 or 16 bits to 8; a TIFF may count from white, a PNG may name one level transparent."""
    white, white_is_zero = _white(image)
    levels = np.minimum(np.arange(1 << 16, dtype=np.uint32), white)
    scaled = ((levels * 255 + white // 2) // white).astype(np.uint8)
    clear = image.info.get("transparency")
    opacity = np.where(np.arange(1 << 16) == clear, 0, 255).astype(np.uint8)
    table = np.stack(
        [255 - scaled if white_is_zero else scaled] * 3 + ([] if clear is None else [opacity]), axis=1
    )
    deep = _levels(image)
    converted = np.empty((*deep.shape, table.shape[1]), np.uint8)
    # An index of the whole image would take eight times the memory of its levels.
    for top in range(0, deep.shape[0], _ROWS_AT_ONCE):
        converted[top : top + _ROWS_AT_ONCE] = table[deep[top : top + _ROWS_AT_ONCE]]
    return (converted, None) if clear is None else _lay_over(converted, alpha)


def _white(image: Image.Image) -> tuple[int, bool]:
    """The level that is white in gray of 12 or 16 bits, and whether levels count down from white instead."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0xFFFF, False
    tags = image.tag_v2
    white = (1 << tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1
    return white, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _lay_over(rgba: Pixels, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
    colour, opacity = rgba[..., :3], rgba[..., 3:]
    if (opacity == 255).all():
        return np.ascontiguousarray(colour), None
    if alpha == "drop":
        return np.ascontiguousarray(colour), opacity[..., 0]
    if alpha == "refuse":
        raise ImageRefused("has_alpha", "the picture has transparent pixels; expected an opaque one")
    ground = 255 if alpha == "white" else 0
    # 16 bits suffice: with the terms below the values are at most 255 * 255 + 127.
    blended = np.multiply(colour, opacity, dtype=np.uint16)
    blended += (255 - opacity) * np.uint16(ground) + np.uint16(127)
    blended //= 255
    return blended.astype(np.uint8), opacity[..., 0]
