"""Bits that a file stores for each channel, and the colours of those that Pillow reduces to 8.

Pillow gives 16-bit gray whole, and of 16-bit colours the upper 8 bits. OpenCV gives those of a PNG or TIFF
whole; they are taken where its upper bits are what Pillow found, so that two decoders agree on each pixel.
"""

import re
from typing import Any, Final

import numpy as np
from PIL import TiffImagePlugin

from diffbfr.images.errors import ImageRefused
from diffbfr.images.loading import Loaded
from diffbfr.images.rgb import DeepPixels

_PNM_MAXIMUM: Final = re.compile(
    rb"P[2356](?:(?:[ \t\r\n]|#[^\r\n]*[\r\n])+[0-9]+){2}(?:[ \t\r\n]|#[^\r\n]*[\r\n])+([0-9]{1,5})"
)
_HEADER_BYTES: Final = 4096
_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_COMPONENT_BITS_AT: Final = 42
"""From the start of a JPEG 2000 codestream."""
_ASSOCIATED_ALPHA: Final = 1
_APART: Final = 2
_ROWS_AT_ONCE: Final = 64


def stored_bits(loaded: Loaded) -> int:
    """Return the bits of a channel in the file, 8 where it does not say."""
    data, image = loaded.data, loaded.image
    if loaded.format == "PNG":
        return data[24]
    if loaded.format == "TIFF" and isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
    if loaded.format == "PNM":
        found = _PNM_MAXIMUM.match(data[:_HEADER_BYTES])
        return int(found[1]).bit_length() if found else 8
    if loaded.format == "JPEG 2000":
        at = data.find(_CODESTREAM)
        return (data[at + _COMPONENT_BITS_AT] & 0x7F) + 1 if 0 <= at < len(data) - _COMPONENT_BITS_AT else 8
    if loaded.format == "AVIF":
        at = data.find(b"av1C")
        flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 8


def deep_colours(loaded: Loaded) -> DeepPixels | None:
    """Return 16-bit colours of a PNG or TIFF whole (uint16 [h, w, 2, 3 or 4]); None if there are none.

    Gray with alpha is [h, w, 2]. A TIFF comes upright. `ImageRefused` if they cannot be read whole.
    """
    if loaded.format not in ("PNG", "TIFF") or loaded.image.mode not in ("RGB", "RGBA"):
        return None
    if stored_bits(loaded) != 16:
        return None
    if loaded.format == "TIFF" and _ASSOCIATED_ALPHA in _values(loaded, TiffImagePlugin.EXTRASAMPLES):
        raise _unread("its colours are multiplied by their opacity")
    if loaded.format == "TIFF" and _APART in _values(loaded, TiffImagePlugin.PLANAR_CONFIGURATION):
        raise _unread("its channels lie apart")
    deep = _by_opencv(loaded)
    upper = np.asarray(loaded.image)
    if deep is None or deep.ndim != 3 or deep.shape[:2] != upper.shape[:2] or deep.shape[2] < upper.shape[2]:
        raise _unread("OpenCV does not read them")
    if loaded.format == "TIFF":
        deep = deep[..., : upper.shape[2]]  # a fourth channel may be no opacity
    for top in range(0, len(upper), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        if not np.array_equal(deep[rows, :, : upper.shape[2]] >> 8, upper[rows]):
            raise _unread("Pillow and OpenCV find other values in the file")
    is_gray = loaded.format == "PNG" and loaded.data[25] == 4
    return np.ascontiguousarray(deep[..., [0, 3]]) if is_gray else deep


def _by_opencv(loaded: Loaded) -> DeepPixels | None:
    """RGB or RGBA as OpenCV decodes it."""
    import cv2

    flags = cv2.IMREAD_UNCHANGED
    data = np.frombuffer(loaded.data, np.uint8)
    try:
        if loaded.page:
            found: Any = cv2.imdecodemulti(data, flags, range=(loaded.page, loaded.page + 1))[1][0]
        else:
            found = cv2.imdecode(data, flags)
    except (cv2.error, IndexError):
        return None
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    order = cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.asarray(cv2.cvtColor(found, order), np.uint16)


def _values(loaded: Loaded, tag: int) -> tuple[int, ...]:
    """The values of a TIFF's tag."""
    image = loaded.image
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return ()
    found = image.tag_v2.get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _unread(why: str) -> ImageRefused:
    return ImageRefused(
        "unsupported_pixels",
        f"its 16-bit colours cannot be read whole: {why}; save the picture as 16-bit PNG",
    )
