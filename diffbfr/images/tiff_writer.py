"""Encode a photo as TIFF, of 8 or 16 bits; Pillow writes no colours of 16 bits.

One page of strips, stored as they are or deflated with a horizontal predictor: lossless, and read by every
program that reads 16 bits.
"""

import io
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

_STRIP_BYTES: Final = 1 << 20
_LEVEL: Final = 4
_RAW, _DEFLATED = 1, 8
_HORIZONTAL: Final = 2
_BLACK_IS_ZERO, _RGB = 1, 2
_UNASSOCIATED_ALPHA: Final = 2
_PREDICTOR: Final = 317
_INCHES: Final = 2
_INNER: Final = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def encode_tiff(
    pixels: UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w *c"],
    *,
    compressed: bool = True,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """Encode pixels [h, w] or [h, w, 2, 3 or 4], the last of 2 or 4 channels an alpha; losslessly.

    `exif` is a block as Pillow writes it, whose camera and date become tags.
    """
    layers = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, num_channels = layers.shape
    row_bytes = width * num_channels * layers.itemsize
    rows = max(1, _STRIP_BYTES // row_bytes)
    strips = [_strip(layers[top : top + rows], compressed) for top in range(0, height, rows)]
    lengths = [len(strip) for strip in strips]
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    _add_exif(tags, exif)
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * layers.itemsize,) * num_channels
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = num_channels
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = _BLACK_IS_ZERO if num_channels < 3 else _RGB
    if num_channels in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = _UNASSOCIATED_ALPHA
    tags[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    tags[TiffImagePlugin.COMPRESSION] = _DEFLATED if compressed else _RAW
    if compressed:
        tags[_PREDICTOR] = _HORIZONTAL
    tags[TiffImagePlugin.ROWSPERSTRIP] = rows
    for tag, values in (
        (TiffImagePlugin.STRIPBYTECOUNTS, lengths),
        (TiffImagePlugin.STRIPOFFSETS, np.cumsum([0, *lengths[:-1]]).tolist()),  # from the end of the tags
    ):
        tags.tagtype[tag] = TiffTags.LONG
        tags[tag] = tuple(values)
    if dpi is not None:
        tags[TiffImagePlugin.RESOLUTION_UNIT] = _INCHES
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = dpi
    if icc is not None:
        tags.tagtype[TiffImagePlugin.ICCPROFILE] = TiffTags.UNDEFINED
        tags[TiffImagePlugin.ICCPROFILE] = icc
    if xmp is not None:
        tags.tagtype[TiffImagePlugin.XMP] = TiffTags.BYTE
        tags[TiffImagePlugin.XMP] = xmp
    buffer = io.BytesIO()
    tags.save(buffer)
    for strip in strips:
        buffer.write(strip)
    return buffer.getvalue()


def _strip(layers: UInt8[np.ndarray, "rows w c"] | UInt16[np.ndarray, "rows w c"], compressed: bool) -> bytes:
    little = layers.astype(layers.dtype.newbyteorder("<"))
    if not compressed:
        return little.tobytes()
    little[:, 1:] -= layers[:, :-1]
    return zlib.compress(little.tobytes(), _LEVEL)


def _add_exif(tags: TiffImagePlugin.ImageFileDirectory_v2, exif: bytes | None) -> None:
    if exif is None:
        return
    block = Image.Exif()
    block.load(exif)
    for tag, value in block.items():
        if tag not in _INNER:
            tags[tag] = value
    for inner in _INNER:
        found = block.get_ifd(inner)
        if found:
            tags[inner] = dict(found)
