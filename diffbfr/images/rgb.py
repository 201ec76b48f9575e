"""A loaded image as upright 8-bit RGB pixels."""

from typing import Final, Literal, TypeAlias

import numpy as np
from PIL import Image, TiffImagePlugin

from diffbfr.images.convert import Pixels
from diffbfr.images.errors import ImageRefused

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
    try:
        return _to_rgb(_upright(image), alpha)
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


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation that is left after loading (TIFF files are turned by Pillow itself)."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing about the pixels: keep them as stored.
        orientation = 1
    return image.transpose(_UPRIGHT_BY[orientation]) if orientation in _UPRIGHT_BY else image


def _to_rgb(image: Image.Image, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return _deep_gray_to_rgb(image, alpha)
    if image.mode == "I" and image.format == "PPM":
        # Pillow scales a PNM of more than 8 bits to 16 and keeps it in 32
        return _deep_gray_to_rgb(
            Image.fromarray(np.clip(np.asarray(image), 0, 0xFFFF).astype(np.uint16)), alpha
        )
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _lay_over(_rgba(image), alpha)
    if image.mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None
    raise ImageRefused(
        "unsupported_pixels",
        f"pixels of kind {image.mode!r} have no agreed white; save the picture with 8 or 16 bits",
    )


def _rgba(image: Image.Image) -> Pixels:
    rgba = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    if image.format == "TGA" and not rgba[..., 3].any():
        # many programs leave the fourth byte of a TGA unset; as an opacity it would hide the whole picture
        rgba = rgba | np.array([0, 0, 0, 255], np.uint8)
    return rgba


def _deep_gray_to_rgb(image: Image.Image, alpha: AlphaPolicy) -> tuple[Pixels, Pixels | None]:
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
    return (converted, None) if clear is None else _lay_over(converted, alpha)


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
