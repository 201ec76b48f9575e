"""The part of an aligned face that its photo holds, rendered at any size."""

import numpy as np
from jaxtyping import Float32, Float64

from diffbfr.shards.schema import FaceFrame


def quad_at(face: FaceFrame, px: int) -> Float64[np.ndarray, "4 2"]:
    """The corners of the photo in pixels of a frame of `px`; the centre of the first pixel is (0, 0)."""
    corners: Float64[np.ndarray, "4 2"] = np.array(face.quad, dtype=np.float64).reshape(4, 2)
    return corners * px - 0.5


def valid_area(face: FaceFrame, px: int) -> Float32[np.ndarray, "px px"]:
    """1 for the pixels of a frame of `px` whose centre lies in the photo, 0 for the others."""
    corners = quad_at(face, px)
    y, x = np.mgrid[:px, :px].astype(np.float64)
    inside = np.ones((px, px), dtype=bool)
    # the corners go clockwise as seen, so that the photo is to the right of each edge
    for (x_0, y_0), (x_1, y_1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (x_1 - x_0) * (y - y_0) >= (y_1 - y_0) * (x - x_0)
    return inside.astype(np.float32)
