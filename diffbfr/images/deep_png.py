"""Encode pixels of 16 bits as PNG, which Pillow does for gray alone."""

import struct
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8

from diffbfr.images.png_chunks import without_kinds
from diffbfr.images.rgb import DeepPixels

_COLOUR_TYPES: Final = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP = 1, 2
_LEVEL: Final = 4
_ROWS_AT_ONCE: Final = 64


def encode_deep_png(pixels: DeepPixels, described: bytes) -> bytes:
    """Encode uint16 pixels [h, w] or [h, w, 2, 3 or 4] with the metadata of another PNG.

    `described` is a PNG of any pixels, without a palette; its chunks are copied except those of its pixels.
    """
    layers = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, num_channels = layers.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[num_channels], 0, 0, 0)
    metadata = without_kinds(described, (b"IHDR", b"IDAT", b"IEND"))
    signature, others = metadata[:8], metadata[8:]
    return b"".join(
        (signature, _chunk(b"IHDR", header), others, _chunk(b"IDAT", _deflated(layers)), _chunk(b"IEND", b""))
    )


def _deflated(layers: DeepPixels) -> bytes:
    """The rows, each filtered by its left or upper neighbours, whichever leaves less."""
    stored = np.ascontiguousarray(layers).astype(">u2")
    height, _, num_channels = layers.shape
    rows = stored.view(np.uint8).reshape(height, -1)
    deflate = zlib.compressobj(_LEVEL)
    parts = []
    for top in range(0, height, _ROWS_AT_ONCE):
        block = rows[top : top + _ROWS_AT_ONCE]
        above = np.vstack([rows[top - 1] if top else np.zeros_like(rows[0]), block[:-1]])
        sub = block.copy()
        sub[:, 2 * num_channels :] -= block[:, : -2 * num_channels]
        parts.append(deflate.compress(_filtered(sub, block - above).tobytes()))
    return b"".join((*parts, deflate.flush()))


def _filtered(
    sub: UInt8[np.ndarray, "rows bytes"], up: UInt8[np.ndarray, "rows bytes"]
) -> UInt8[np.ndarray, "rows bytes+1"]:
    weights = [np.abs(found.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64) for found in (sub, up)]
    takes_up = (weights[1] < weights[0])[:, None]
    kinds = np.where(takes_up, _UP, _SUB).astype(np.uint8)
    return np.hstack([kinds, np.where(takes_up, up, sub)])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
