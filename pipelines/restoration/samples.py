"""Several restorations of one photo: where their files lie, and how far they differ.

With `--samples N` the mirror is N + 1 mirrors: `draw-0/` to `draw-{N-1}/`, and `spread/`. Draw 0 is what a
single restoration makes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from diffbfr.images import Pixels

SPREAD_GAIN: Final = 4
"""A pixel of a spread picture is so many times its pixel_std in 8-bit levels, that a person sees it; 255
is 64 levels or more.
"""


def first_prefix(samples: int) -> str:
    """What the name of a photo's first restoration begins with."""
    return "draw-0/" if samples > 1 else ""


def other_outputs(output: str, samples: int) -> tuple[str, ...]:
    """Names of the further draws of a photo and of its spread, from the name of its first restoration."""
    if samples < 2:
        return ()
    name = output.removeprefix(first_prefix(samples))
    return (*(f"draw-{draw}/{name}" for draw in range(1, samples)), f"spread/{name}")


def pixel_std(draws: Sequence[Pixels]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Standard pixel_std of each pixel over the draws, in 8-bit levels, h x w: the root of the mean
    variance of its three channels.
    """
    stacked = np.stack(draws).astype(np.float64)
    variance: np.ndarray[tuple[int, int], np.dtype[np.float64]] = stacked.var(axis=0, ddof=1).mean(axis=-1)
    return np.sqrt(variance)


def std_heatmap(spread: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Pixels:
    """Draw a pixel_std as a gray picture, `SPREAD_GAIN` times as bright."""
    levels = np.clip(np.rint(SPREAD_GAIN * spread), 0, 255).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
