"""sRGB's transfer curve (IEC 61966-2-1): stored values of 8 or 16 bits to linear light and back."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

Light = NDArray[np.float32]
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in linear light (Rec. 709)."""


def to_light(stored: NDArray[Any]) -> Light:
    """Linear light in [0, 1] of uint8, uint16, or float32 values in [0, 1]."""
    if stored.dtype == np.float32:
        return _decoded(stored)
    looked_up: Light = _table(stored.dtype.name)[stored]
    return looked_up


def to_stored(light: Light, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Stored values, rounded and clamped; the inverse of `to_light` for every value of 8 and 16 bits."""
    clamped = np.clip(light, 0, 1)
    encoded = np.where(
        clamped <= 0.0031308, 12.92 * clamped, 1.055 * clamped ** np.float32(1 / 2.4) - np.float32(0.055)
    )
    return np.rint(encoded * np.float32(np.iinfo(dtype).max)).astype(dtype)


def luminance(light: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 1"]:
    """The gray of the same brightness."""
    return light @ np.array(LUMINANCE, np.float32)[:, None]


@functools.cache
def _table(dtype: str) -> Light:
    levels = np.iinfo(dtype).max
    return _decoded(np.arange(levels + 1, dtype=np.float64) / levels)


def _decoded(stored: NDArray[Any]) -> Light:
    low, high = stored / 12.92, ((np.maximum(stored, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(stored <= 0.04045, low, high).astype(np.float32)
