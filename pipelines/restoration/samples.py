"""Several restorations (samples) of one photo: their file names, and how far they differ.

With `--samples N` the output holds N + 1 mirrors of the input: `sample-0/` to `sample-{N-1}/`, and `spread/`.
Sample 0 is the file that a single restoration writes.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from diffbfr.faces.align import colour_layers
from diffbfr.images import Pixels
from diffbfr.images.photo import PhotoPixels

SPREAD_GAIN: Final = 4
"""Gray levels of a heat map for each 8-bit level of standard deviation; it saturates at 64 levels."""


def first_prefix(samples: int) -> str:
    """Folder of the first sample, relative to the output; "" for a single restoration."""
    return "sample-0/" if samples > 1 else ""


def other_outputs(output: str, samples: int) -> tuple[str, ...]:
    """Names of the further samples of a photo and of its spread, from the name of its first sample."""
    if samples < 2:
        return ()
    name = output.removeprefix(first_prefix(samples))
    spread = name if name.lower().endswith(".png") else f"{name}.png"
    return (*(f"sample-{number}/{name}" for number in range(1, samples)), f"spread/{spread}")


def pixel_std(samples: Sequence[Pixels]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Standard deviation of each pixel over the samples, h x w, in 8-bit levels.

    It is the root of the mean over channels of the unbiased variance.
    """
    stacked = np.stack(samples).astype(np.float64)
    variance: np.ndarray[tuple[int, int], np.dtype[np.float64]] = stacked.var(axis=0, ddof=1).mean(axis=-1)
    return np.sqrt(variance)


class SpreadOfPhoto:
    """`pixel_std` of photos that come one by one, of any depth and channels; alpha is left out."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, photo: PhotoPixels) -> None:
        """Add one photo (Welford 1962)."""
        layers = colour_layers(photo) * (255 / np.iinfo(photo.dtype).max)
        self._count += 1
        change = layers - self._mean
        self._mean = self._mean + change / self._count
        self._squares = self._squares + change * (layers - self._mean)

    def value(self) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
        """The deviation of each pixel, h x w, in 8-bit levels."""
        variance = self._squares.mean(axis=-1) / (self._count - 1)
        deviation: np.ndarray[tuple[int, int], np.dtype[np.float64]] = np.sqrt(variance)
        return deviation


def std_heatmap(spread: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Pixels:
    """A `pixel_std` as a gray image, uint8 h w 3: `SPREAD_GAIN` gray levels for each level of deviation."""
    levels = np.clip(np.rint(SPREAD_GAIN * spread), 0, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
