"""How much detail a face has, octave by octave, and the fidelity that its restoration is given for it."""

from itertools import pairwise
from math import sqrt
from typing import Final

import numpy as np
from jaxtyping import Float32

from diffbfr.stages import PAPER_FIDELITY

NOISE_MARGIN: Final = 1.05
"""The spread of the estimate of noise, so that noise alone is none."""
LEAST_DETAIL: Final = 0.2
"""Levels of 8 bits below which there is no detail to compare."""
LOST_SHARE: Final = 0.12
SHARP_SHARE: Final = 0.5
"""The two finest octaves as a share of the two below: of a face enlarged eight times, and of a sharp one."""


def kept_detail(gray: Float32[np.ndarray, "px px"]) -> float:
    """How much of its detail beyond IRM-1's size a face kept, from 0 to 1.

    `gray` has the size of the output, four times that of IRM-1. What IRM-1 is too small for are the two
    finest octaves (Gaussians of 1 and 2 px). Their edges, without what is noise, are compared with those of
    the two octaves below, which IRM-1 sees, so that light and contrast do not matter. It falls with blur,
    with the factor by which a face was enlarged, and with noise; a JPEG's blocks hardly change it. 0 where
    there is nothing to compare.
    """
    bands = octaves(gray, 4)
    seen = sqrt(sum(float(band.var()) for band in bands[2:]))
    if seen < LEAST_DETAIL:
        return 0.0
    share = sqrt(sum(edges(band) ** 2 for band in bands[:2])) / seen
    return min(1.0, max(0.0, (share - LOST_SHARE) / (SHARP_SHARE - LOST_SHARE)))


def adaptive_fidelity(detail: float) -> float:
    """The fidelity of a face by its `kept_detail`: the paper's for none, and 1 for all of it."""
    return PAPER_FIDELITY + (1 - PAPER_FIDELITY) * detail


def octaves(gray: Float32[np.ndarray, "px px"], count: int) -> list[Float32[np.ndarray, "h w"]]:
    """The octaves of the middle of a gray frame, the finest first: between Gaussians of 1, 2, 4 px."""
    import cv2

    blurred = [gray, *(cv2.GaussianBlur(gray, (0, 0), float(1 << i)) for i in range(count))]
    part = slice(gray.shape[0] // 4, gray.shape[0] * 3 // 4)
    return [(a - b)[part, part] for a, b in pairwise(blurred)]


def edges(octave: Float32[np.ndarray, "h w"]) -> float:
    """The deviation of an octave without what is noise.

    The share that a normal distribution of the same median has is taken off, as noise is everywhere and edges
    are not.
    """
    noise = 1.4826 * float(np.median(np.abs(octave - np.median(octave))))
    return sqrt(max(0.0, float(octave.var()) - NOISE_MARGIN * noise**2))
