"""Similarities, the frame of five points, and the pixels of a frame against closed forms."""

from math import cos, radians, sin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.align import FRAME_EYES_PX, FRAME_POINTS, FRAME_PX, align, aligned_faces, fit_frame
from diffbfr.faces.detect import Face, as_points
from diffbfr.faces.similarity import Similarity, fit_similarity

similarities = st.builds(
    lambda scale, degrees, x, y: (
        Similarity.of_turn(degrees).then(Similarity(scale, 0.0, 0.0, 0.0)).then(Similarity.of_shift(x, y))
    ),
    st.floats(0.02, 20),
    st.floats(-180, 180),
    st.floats(-5000, 5000),
    st.floats(-5000, 5000),
)


def waves(x: NDArray[np.float64], y: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """A picture as a function of the place, in [28, 228]."""
    return 128 + 50 * np.sin(2 * np.pi * (x + 0.3 * y) / period) + 50 * np.cos(2 * np.pi * y / (1.3 * period))


def wave_photo(height: int, width: int, period: float) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width].astype(float)
    return np.repeat(np.rint(waves(x, y, period)).astype(np.uint8)[..., None], 3, 2)


@given(similarities)
@settings(max_examples=50, deadline=None)
def test_a_known_similarity_is_recovered(known: Similarity) -> None:
    found = fit_similarity(FRAME_POINTS, known(FRAME_POINTS))
    assert np.abs(found(FRAME_POINTS) - known(FRAME_POINTS)).max() < 1e-6
    frame = fit_frame(known(FRAME_POINTS))
    corners = np.array([[0.0, 0.0], [511.0, 0.0], [511.0, 511.0]])
    assert np.abs(frame.to_photo(corners) - known(corners)).max() < 1e-6 * max(1, known.scale)
    assert frame.left_out is None


@given(similarities, similarities)
@settings(max_examples=50, deadline=None)
def test_similarities_compose_and_invert_as_their_matrices_do(one: Similarity, other: Similarity) -> None:
    points = FRAME_POINTS
    assert np.allclose(one.then(other)(points), other(one(points)), atol=1e-6)
    assert np.allclose(one.inverse()(one(points)), points, atol=1e-5)
    assert one.scale == pytest.approx(np.sqrt(abs(np.linalg.det(one.matrix[:, :2]))))


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("missed", [0.6, 1.0, 3.0])
def test_one_bad_point_of_five_is_left_out(index: int, missed: float) -> None:
    """The frame is that of the other four, placed to 2 % of the eye distance, and nearer to the true one than
    the least squares of all five.
    """
    known = Similarity.of_turn(20).then(Similarity(0.3, 0, 0, 0)).then(Similarity.of_shift(90, 40))
    generator = np.random.default_rng(index)
    points = FRAME_POINTS + generator.normal(0, 0.02 * FRAME_EYES_PX / 2**0.5, (5, 2))
    direction = generator.uniform(0, 2 * np.pi)
    points[index] += missed * FRAME_EYES_PX * np.array([cos(direction), sin(direction)])
    frame = fit_frame(known(points))
    assert frame.left_out == index

    def error(found: Similarity) -> float:
        corners = np.array([[100.0, 100], [400, 100], [400, 450], [100, 450]])
        return float(np.abs(known.inverse()(found(corners)) - corners).max() / FRAME_EYES_PX)

    others = [i for i in range(5) if i != index]
    by_four = fit_similarity(known(points)[others], FRAME_POINTS[others]).inverse()
    assert error(frame.to_photo) == pytest.approx(error(by_four), abs=1e-9)
    assert error(fit_similarity(known(points), FRAME_POINTS).inverse()) > error(frame.to_photo)


def test_no_point_is_left_out_where_they_agree_to_a_tenth_of_the_eye_distance() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        points = FRAME_POINTS + generator.uniform(-0.1, 0.1, (5, 2)) * FRAME_EYES_PX
        assert fit_frame(points).left_out is None


def test_five_equal_points_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="expected five different ones"):
        fit_frame(np.full((5, 2), 7.0))


@pytest.mark.parametrize(("scale", "px"), [(0.2, 256), (0.2, 64), (0.6, 256), (1.3, 64), (1.5, 32)])
def test_a_frame_holds_the_photo_at_its_pixels(scale: float, px: int) -> None:
    """Enlarged or about equal: the values of the function; shrunk: its means over the pixels, from 8 x 8
    samples each.
    """
    step = scale * FRAME_PX / px
    period = 12 * max(1.0, step)
    side = int(scale * FRAME_PX * 1.5) + 60
    photo = wave_photo(side, side, period)
    place = Similarity.of_turn(27).then(Similarity(scale, 0, 0, 0)).then(Similarity.of_shift(side * 0.4, 10))
    frame = fit_frame(place(FRAME_POINTS))
    found = align(photo, frame, px)
    fine = 8 if step > 1 else 1
    y, x = (np.mgrid[: px * fine, : px * fine] + 0.5) / fine - 0.5
    points = frame.at(px)(np.stack([x.ravel(), y.ravel()], 1))
    exact = waves(points[:, 0], points[:, 1], period).reshape(px, fine, px, fine).mean((1, 3))
    off = np.abs(found.pixels[..., 0] - exact)[found.valid]
    assert found.valid.mean() > 0.5
    assert off.max() < 6, "bilinear between samples of 12 to a period is off by (pi / 12)^2 / 2 of 100 levels"
    assert off.mean() < 1.5


def test_shrinking_does_not_alias() -> None:
    """Stripes finer than a pixel of the frame become flat gray; a sample at each pixel would beat."""
    photo = np.zeros((800, 800, 3), np.uint8)
    photo[:, ::2] = 255
    frame = fit_frame(Similarity(1.5, 0.0, 10, 10)(FRAME_POINTS))
    pixels = align(photo, frame, 64).pixels.astype(int)
    assert np.abs(pixels - 127).max() <= 12


def test_beyond_the_photo_the_frame_is_mirrored_and_invalid() -> None:
    photo = np.arange(100, dtype=np.uint8)[None, :, None].repeat(80, 0).repeat(3, 2)
    frame = fit_frame(Similarity(0.125, 0.0, -20.0, 30.0)(FRAME_POINTS))
    found = align(photo, frame, 64)
    columns = np.round(frame.at(64)(np.stack([np.arange(64.0), np.zeros(64)], 1))[:, 0]).astype(int)
    assert (found.valid[0] == (columns >= 0)).all()
    assert not found.valid[-1].any(), "the photo ends above the frame"
    mirrored = np.where(columns < 0, -1 - columns, columns)
    assert np.abs(found.pixels[5, :, 0].astype(int) - mirrored).max() <= 1
    # the quadrilateral says the same
    inside = frame.at(64)(found.quad)
    assert np.allclose(inside, [(-0.5, -0.5), (99.5, -0.5), (99.5, 79.5), (-0.5, 79.5)], atol=1e-9)


@pytest.mark.parametrize("shape", [(60, 70), (60, 70, 1), (60, 70, 2), (60, 70, 3), (60, 70, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_alpha_and_16_bits_give_8_bit_rgb(shape: tuple[int, ...], dtype: type) -> None:
    full = np.iinfo(dtype).max
    photo = np.full(shape, full // 5 * 2, dtype)
    if len(shape) == 3 and shape[2] in (2, 4):
        photo[..., -1] = 0
    frame = fit_frame(Similarity(0.1, 0.0, 5, 5)(FRAME_POINTS))
    found = align(photo, frame, 32)
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape == (32, 32, 3)
    assert (found.pixels == 102).all()


def test_a_photo_of_floats_is_refused_in_one_line() -> None:
    frame = fit_frame(FRAME_POINTS)
    with pytest.raises(UsageError, match="expected uint8 or uint16"):
        align(np.zeros((9, 9, 3)), frame, 32)


def test_aligned_faces_come_in_the_order_of_the_faces() -> None:
    photo = wave_photo(300, 300, 40)
    places = [Similarity(0.2, 0.0, 20.0 * i, 30.0) for i in range(3)]
    faces = [Face((0, 0, 9, 9), as_points(place(FRAME_POINTS)), 0.9) for place in places]
    found = aligned_faces(photo, faces, 48)
    assert [round(face.frame.to_photo.shift_x) for face in found] == [0, 20, 40]
    alone = aligned_faces(photo, faces[1:2], 48)[0]
    assert (alone.pixels == found[1].pixels).all()


def test_a_box_keeps_its_size_under_turns() -> None:
    face = Face((10, 20, 50, 70), as_points(FRAME_POINTS), 0.9)
    turned = face.moved(Similarity.of_turn(90))
    assert turned.box == pytest.approx((-70, 10, -20, 50))
    there_and_back = face.moved(Similarity.of_turn(30)).moved(Similarity.of_turn(-30))
    assert abs(there_and_back.side - face.side) < 0.05 * face.side
    assert face.eyes_px == pytest.approx(FRAME_EYES_PX)
    assert face.moved(Similarity.of_turn(degrees := 33)).eyes_px == pytest.approx(FRAME_EYES_PX)
    assert face.moved(Similarity.of_turn(degrees)).points[0][0] == pytest.approx(
        cos(radians(33)) * 192.98 - sin(radians(33)) * 239.95
    )
