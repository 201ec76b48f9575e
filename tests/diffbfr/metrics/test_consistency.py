"""The consistency figure compares at the size that the input resolves."""

import numpy as np
import pytest
from PIL import Image

from diffbfr.errors import UsageError
from diffbfr.images import resize
from diffbfr.metrics.consistency import consistency
from tests.diffbfr.metrics.pictures import faces


def test_a_restoration_that_shrinks_to_its_input_is_consistent_and_another_face_is_not() -> None:
    face, other = faces()
    low = np.asarray(Image.fromarray(face).resize((32, 32), Image.Resampling.BILINEAR))
    assert consistency(face, low) == float("inf")
    assert consistency(other, low) < 20


def test_an_input_that_was_enlarged_is_compared_at_a_fourth() -> None:
    face, _ = faces()
    low = resize(resize(face, 32, "bilinear"), 256, "bilinear")
    noisy = face.copy()
    noisy[::2, ::2] ^= 1  # single levels that no input at a fourth shows
    assert abs(consistency(noisy, low) - consistency(face, low)) < 0.2


def test_the_figure_is_the_psnr_at_the_size_of_the_input() -> None:
    face = np.full((64, 64, 3), 100, np.uint8)
    low = np.full((16, 16, 3), 110, np.uint8)
    assert abs(consistency(face, low) - 10 * np.log10(255**2 / 100)) < 1e-9


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="got 64 x 64 against an input of 16 x 8"):
        consistency(np.zeros((64, 64, 3), np.uint8), np.zeros((8, 16, 3), np.uint8))
