"""One variant of a sample: its degradation parameters, and the part of them that the ground truth shares."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DegradationParams:
    """One draw of the parameters of Eq. 13: all that `degradation.degrade` needs beside the face.

    `sigma` is in pixels of the face that it was drawn for. `noise_seed` has 63 bits, so that it fits a signed
    column of a table.
    """

    sigma: float
    r: float
    delta: float
    q: int
    gray: bool
    flip: bool
    noise_seed: int


def apply_target(hq: NDArray[np.uint8], params: DegradationParams) -> NDArray[np.uint8]:
    """Apply what the ground truth shares with its low-quality face: flip and gray; uint8 [h, w, 3]."""
    target = mirror(hq) if params.flip else hq
    return np.repeat(luma(target)[..., None], 3, axis=2) if params.gray else target


def mirror(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flip horizontally; OpenCV does it some hundred times as fast as copying a reversed view."""
    import cv2

    return np.asarray(cv2.flip(pixels, 1), dtype=np.uint8)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BT.601 luma in 8-bit fixed point, uint8 [h, w, 3] to [h, w]; white stays 255."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((77 * red + 150 * green + 29 * blue + 128) >> 8).astype(np.uint8)
