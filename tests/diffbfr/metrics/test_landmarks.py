"""The landmark distance is in px of 512, and a picture without a face has none."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.metrics.landmarks import landmark_distance


def detect(picture: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Five points at the level of the first pixel; none in a black picture."""
    return None if picture[0, 0, 0] == 0 else np.full((5, 2), float(picture[0, 0, 0]))


def picture(level: int, px: int = 256) -> NDArray[np.uint8]:
    return np.full((px, px, 3), level, np.uint8)


def test_the_distance_is_the_mean_over_points_in_px_of_512() -> None:
    found = landmark_distance([picture(10), picture(9)], [picture(13), picture(9)], detect)
    np.testing.assert_allclose(found, [3 * math.sqrt(2) * 2, 0])


def test_a_picture_without_a_face_has_no_distance() -> None:
    assert math.isnan(landmark_distance([picture(0)], [picture(1)], detect)[0])


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="both must have one shape"):
        landmark_distance([picture(1)], [picture(1, 128)], detect)
