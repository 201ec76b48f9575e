"""The stored corners of a photo give the pixels of a frame that the photo holds, at any size."""

import numpy as np
import pytest

from diffbfr.faces.align import Frame, align
from diffbfr.faces.similarity import Similarity
from diffbfr.shards import FaceFrame, ShardDamagedError
from diffbfr.shards.valid_area import quad_at, valid_area


def _face(quad: tuple[float, ...]) -> FaceFrame:
    return FaceFrame(0, 1, 1.0, 1.0, 0.0, 0.0, 0.0, quad)


@pytest.mark.parametrize("degrees", [0, 20, 90, 135, -60])
@pytest.mark.parametrize(("x", "y"), [(10.0, 20.0), (-40.0, 30.0), (150.0, 110.0)])
def test_corners_of_one_size_give_the_valid_pixels_of_every_size(degrees: float, x: float, y: float) -> None:
    turned = Similarity.of_turn(degrees)
    to_photo = Similarity(turned.a * 0.3, turned.b * 0.3, x, y)
    photo = np.zeros((180, 240, 3), np.uint8)
    cut = align(photo, Frame(to_photo), 64)
    face = _face(tuple(((cut.quad + 0.5) / 64).ravel().tolist()))
    for px in (16, 64, 160):
        other = align(photo, Frame(to_photo), px)
        np.testing.assert_allclose(quad_at(face, px), other.quad, atol=1e-9)
        differing = valid_area(face, px) != other.valid
        assert differing.mean() < 2e-3  # a centre on the very edge may fall to either side


@pytest.mark.parametrize(
    "quad", [(), (0.0,) * 7, (float("nan"),) * 8, (float("inf"),) * 8, (0.0,) * 7 + (-1e300,)]
)
def test_forged_corners_are_refused(quad: tuple[float, ...]) -> None:
    with pytest.raises(ShardDamagedError, match="expected eight numbers"):
        _face(quad)
