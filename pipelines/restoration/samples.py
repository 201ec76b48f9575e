"""Several restorations (samples) of one photo: their file names, and how far they differ.

With `--samples N` the output holds N + 1 mirrors of the input: `sample-0/` to `sample-{N-1}/`, and `spread/`.
Sample 0 is the file that a single restoration writes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from diffbfr.images import Pixels

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
    return (*(f"sample-{number}/{name}" for number in range(1, samples)), f"spread/{name}")


def pixel_std(samples: Sequence[Pixels]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Standard deviation of each pixel over the samples, h x w, in 8-bit levels.

    It is the root of the mean over channels of the unbiased variance.
    """
    stacked = np.stack(samples).astype(np.float64)
    variance: np.ndarray[tuple[int, int], np.dtype[np.float64]] = stacked.var(axis=0, ddof=1).mean(axis=-1)
    return np.sqrt(variance)


def std_heatmap(spread: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Pixels:
    """A `pixel_std` as a gray image, uint8 h w 3: `SPREAD_GAIN` gray levels for each level of deviation."""
    levels = np.clip(np.rint(SPREAD_GAIN * spread), 0, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
