"""Gaussian noise in integers, the same on every machine: raw Philox words index a table of normal quantiles.

NumPy guarantees the raw stream of a bit generator, not the stream of `Generator.normal`, and float noise
rounds differently from one instruction set to the next. Sixteen bits choose one of 65,536 quantiles (|z| <=
4.17), which have 12 fractional bits.
"""

from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

TABLE_BITS: Final = 12
_DELTA_BITS: Final = 8
_SIZE: Final = 1 << 16


@cache
def normal_table() -> NDArray[np.int32]:
    """Return round(2^12 z) of the 65,536 equally likely normal quantiles, rising and antisymmetric."""
    quantile = NormalDist().inv_cdf
    upper = [round(quantile((index + 0.5) / _SIZE) * (1 << TABLE_BITS)) for index in range(_SIZE // 2, _SIZE)]
    table = np.array([-value for value in reversed(upper)] + upper, dtype=np.int32)
    table.setflags(write=False)
    return table


def add_noise(pixels: NDArray[np.uint8], delta: float, seed: int) -> NDArray[np.uint8]:
    """Add N(0, delta^2) to every value of uint8 `pixels`, rounded and clipped.

    `delta` is in levels of 255 and kept to 1/256.
    """
    fixed_delta = round(delta * (1 << _DELTA_BITS))
    if fixed_delta == 0:
        return pixels
    words = np.random.Philox(key=seed).random_raw((pixels.size + 3) // 4)
    index = words.astype("<u8", copy=False).view("<u2")[: pixels.size].reshape(pixels.shape)
    shift = TABLE_BITS + _DELTA_BITS
    noise = (normal_table()[index] * np.int32(fixed_delta) + np.int32(1 << (shift - 1))) >> shift
    noisy: NDArray[np.uint8] = np.clip(noise + pixels, 0, 255).astype(np.uint8)
    return noisy
