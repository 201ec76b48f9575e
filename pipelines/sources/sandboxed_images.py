"""Images of other people, decoded in the sandbox: whole pixels, or a picture that a browser can show."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffbfr.images import ImageRefused, Pixels, decode, decode_trusted, encode_png, resize
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed

_SHOWN_FORMATS = ("PNG", "JPEG", "WEBP")
_PART_MARGIN = 1.5
Box = tuple[float, float, float, float]


def decode_sandboxed(data: bytes) -> Pixels:
    """Decode an image file to upright RGB pixels (uint8 h w 3); `ImageRefused` if its decoder crashed."""
    return _pixels(_decode, data)


def decode_ours_sandboxed(data: bytes) -> Pixels:
    """Like `diffbfr.images.decode_trusted`, for a dataset that somebody else may have written."""
    return _pixels(decode_trusted, data)


def enlarged_png(data: bytes, px: int) -> bytes | None:
    """Decode a square photo and return it as a PNG of px x px (bicubic); None if it cannot be shown."""
    return _shown(_enlarge, data, px)


def shown_image(data: bytes, largest_px: int) -> bytes | None:
    """Return an image file as one that every browser shows, reduced to `largest_px`; None if it is damaged.

    A PNG, JPEG or WebP that is small enough is returned as it is.
    """
    return _shown(_reduce, data, largest_px)


@dataclass(frozen=True, eq=False)
class PhotoPictures:
    """A photo as pictures for a page: the whole, reduced, and parts of it, each WebP."""

    whole: bytes
    parts: tuple[bytes, ...]


def photo_pictures(
    data: bytes, largest_px: int, boxes: Sequence[Box], width: int, part_px: int
) -> PhotoPictures | None:
    """Reduce a photo to `largest_px`, and cut boxes out of it, each made a square of `part_px`.

    A box is left, top, right and bottom in pixels of the photo at `width` pixels. None if it cannot be shown.
    """
    try:
        found = run_sandboxed(_cut, data, largest_px, tuple(boxes), width, part_px, returns=PhotoPictures)
    except ImageRefused:
        return None
    return None if isinstance(found, WorkerFailure) else found


def _cut(data: bytes, largest_px: int, boxes: Sequence[Box], width: int, part_px: int) -> PhotoPictures:
    photo = Image.fromarray(decode(data).pixels)
    scale = photo.width / width
    parts = []
    for left, top, right, bottom in boxes:
        half = _PART_MARGIN * max(right - left, bottom - top) / 2 * scale
        x, y = (left + right) / 2 * scale, (top + bottom) / 2 * scale
        around = round(x - half), round(y - half), round(x + half), round(y + half)
        # what lies outside of the photo is black
        parts.append(_webp(photo.crop(around).resize((part_px, part_px), Image.Resampling.BICUBIC)))
    photo.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    return PhotoPictures(_webp(photo), tuple(parts))


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90)
    return buffer.getvalue()


def _pixels(function: Callable[[bytes], Pixels], data: bytes) -> Pixels:
    found = run_sandboxed(function, data, returns=np.ndarray)
    if isinstance(found, WorkerFailure):
        raise ImageRefused("corrupt", f"decoding it failed: {found.message} ({found.reason})")
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise ImageRefused("corrupt", f"decoding it gave {found.dtype} {found.shape}; expected RGB pixels")
    return found


def _shown(function: Callable[[bytes, int], bytes], data: bytes, px: int) -> bytes | None:
    try:
        found = run_sandboxed(function, data, px, returns=bytes)
    except ImageRefused:
        return None
    return None if isinstance(found, WorkerFailure) else found


def _decode(data: bytes) -> Pixels:
    return decode(data).pixels


def _enlarge(data: bytes, px: int) -> bytes:
    return encode_png(resize(decode(data).pixels, px, "bicubic"))


def _reduce(data: bytes, largest_px: int) -> bytes:
    decoded = decode(data)
    if max(decoded.pixels.shape) <= largest_px and decoded.format in _SHOWN_FORMATS:
        return data
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    return _webp(image)
