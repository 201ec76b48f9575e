"""Test photos: smooth random images with the grain of a camera, PNGs of about 1.5 MB at 1024 px."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(folder: Path, count: int, px: int = 1024) -> Path:
    """Write `count` photos; returns the folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).resize(
            (px, px), Image.Resampling.BICUBIC
        )
        grain = rng.integers(-1, 2, (px, px, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(
            folder / f"{number:05d}.png", compress_level=4
        )
    return folder
