"""A perceptual hash: images that look the same have hashes that differ in few of 256 bits.

The low frequencies of the brightness (a discrete cosine transform of 64 x 64 pixels, its first 16 x 16
coefficients without the mean) are compared with their median (pHash; Zauner 2010). All of it is in integers,
so the hash is the same on every machine.
"""

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffbfr.images.convert import Pixels

BITS: Final = 256
NEAR: Final = 15
"""Hashes that differ in at most so many bits are of images that look the same.

Of 44,850 pairs of 300 procedural faces the closest differ in 34 bits. JPEG of quality 50 changes at most 16,
half the size 6, more light 10, noise of 4 levels 10; a crop of 2 px at each side of 128 changes 29.
"""
_SIDE_PX, _LOW = 64, 16
_SCALE: Final = 1 << 12


def perceptual_hash(square: Pixels) -> str:
    """64 hex digits of a square image; two hashes are compared by the number of bits that differ."""
    small = Image.fromarray(square).convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    cosines = _cosines()
    frequencies = (cosines @ np.asarray(small, dtype=np.int64) @ cosines.T).ravel()[1:]
    bits = frequencies > np.sort(frequencies)[len(frequencies) // 2]
    return np.packbits(np.concatenate([[False], bits])).tobytes().hex()


@functools.cache
def _cosines() -> NDArray[np.int64]:
    frequency, pixel = np.arange(_LOW)[:, None], np.arange(_SIDE_PX)[None]
    waves = np.cos(np.pi * (2 * pixel + 1) * frequency / (2 * _SIDE_PX))
    cosines: NDArray[np.int64] = np.rint(waves * _SCALE).astype(np.int64)
    return cosines
