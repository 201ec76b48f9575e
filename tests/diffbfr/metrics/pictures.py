"""Pictures that every machine makes alike, and the converted weights where they were fetched."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.images import resize
from diffbfr.synthetic import render_face
from pipelines.packages.weights import find_weights


def cached(name: str) -> Path:
    """The file of a set of weights; skips the test where the cache has none."""
    path = find_weights(name)
    if path is None:
        pytest.skip(f"no weights {name} in the cache: run `diffbfr setup metrics`")
    return path


def faces() -> list[NDArray[np.uint8]]:
    """Two procedural faces of 256 px."""
    return [render_face(seed, 256).pixels for seed in (1, 2)]


def blurred_faces() -> list[NDArray[np.uint8]]:
    """The same through 64 px and back, bilinear."""
    return [resize(resize(face, 64, "bilinear"), 256, "bilinear") for face in faces()]


def texture(height: int, width: int, smooth_px: int = 1) -> NDArray[np.uint8]:
    """Noise of one integer hash, uint8 h w 3, averaged over squares of `smooth_px`."""
    place = np.arange(height * width * 3, dtype=np.uint64).reshape(height, width, 3)
    noise = (place * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) >> np.uint64(56)
    total = np.zeros_like(noise)
    for down in range(smooth_px):
        for right in range(smooth_px):
            total += np.roll(noise, (down, right), axis=(0, 1))
    return (total // np.uint64(smooth_px**2)).astype(np.uint8)
