"""Verdicts on faces whose size, place, turn and sharpness are known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.align import FRAME_EYES_PX, FRAME_POINTS
from diffbfr.faces.choose import ChoicePolicy, choose, fine_detail, least_contrast, turned_by
from diffbfr.faces.detect import Face, as_points
from diffbfr.synthetic import render_face
from tests.diffbfr.faces.scenes import Placed, background, compose

POLICY = ChoicePolicy(model_px=128)
"""With eyes up to 31.5 px apart a frame is smaller than the model's picture."""


def face_of(placed: Placed, score: float = 0.9) -> Face:
    """What a detector that makes no errors says."""
    points = placed.points
    (left, top), (right, bottom) = points.min(0) - 0.5 * placed.eyes_px, points.max(0) + 0.5 * placed.eyes_px
    return Face((left, top, right, bottom), as_points(points), score)


def photo_and_faces(*placed: Placed) -> tuple[NDArray[np.uint8], list[Face]]:
    return compose(background(200, 300, 0), placed), [face_of(one) for one in placed]


def soft(pixels: NDArray[np.uint8], by: float = 8.0) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), by), np.uint8)


FACE = soft(render_face(1).pixels)


def reasons(photo: NDArray[np.uint8], faces: list[Face], policy: ChoicePolicy = POLICY) -> list[str]:
    return [verdict.reason for verdict in choose(photo, faces, policy)]


def test_faces_are_chosen_by_the_distance_between_the_eyes() -> None:
    placed = [Placed(FACE, 60, 100, 7.5), Placed(FACE, 110, 100, 8.5), Placed(FACE, 200, 100, 38)]
    photo, faces = photo_and_faces(*placed)
    assert reasons(photo, faces) == ["too_small", "chosen", "larger_than_model"]
    assert reasons(photo, faces, replace(POLICY, min_eyes_px=12))[1] == "too_small"
    assert reasons(photo, faces, replace(POLICY, any_size=True))[2] == "chosen"
    assert choose(photo, faces, POLICY)[1].eyes_px == pytest.approx(8.5)


def test_a_frame_of_the_models_own_size_is_not_larger() -> None:
    """Points are placed to a few percent: a crop of the model's size is not left alone for its noise."""
    photo, faces = photo_and_faces(Placed(FACE, 150, 100, FRAME_EYES_PX / 4 * 1.05))
    assert reasons(photo, faces) == ["chosen"]


def test_a_face_that_the_border_cuts_in_half_is_cut_off() -> None:
    photo, faces = photo_and_faces(Placed(FACE, 0, 100, 24), Placed(FACE, 150, 100, 24))
    assert reasons(photo, faces) == ["cut_off", "chosen"]


@pytest.mark.parametrize(("shift", "expected"), [(0.2, "chosen"), (0.7, "turned_away")])
def test_a_nose_beyond_an_eye_is_turned_away(shift: float, expected: str) -> None:
    placed = Placed(FACE, 150, 100, 24, 30)
    photo, (face,) = photo_and_faces(placed)
    points = placed.points
    points[2] += shift * (points[1] - points[0])
    turned = Face(face.box, as_points(points), 0.9)
    assert turned_by(turned) == pytest.approx(shift, abs=0.01)
    assert reasons(photo, [turned]) == [expected]


@pytest.mark.parametrize("part", [(120, 190, 270, 290), (160, 335, 350, 460)])
def test_an_eye_or_a_mouth_behind_something_plain_is_covered(part: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = part
    for seed in range(3):
        pixels = render_face(seed).pixels.copy()
        pixels[top:bottom, left:right] = (110, 120, 140)
        photo, faces = photo_and_faces(Placed(soft(pixels, 3), 150, 100, 28))
        assert reasons(photo, faces) == ["covered"]


def test_a_sharp_face_is_left_alone_and_a_soft_or_noisy_one_is_not() -> None:
    policy = ChoicePolicy(model_px=256)
    generator = np.random.default_rng(0)
    frame, faces = render_face(3, 256).pixels, [face_of(Placed(FACE, 127, 130, FRAME_EYES_PX / 2))]
    faces = [Face((60, 60, 200, 220), as_points(FRAME_POINTS / 2 - 0.25), 0.9)]
    noisy = np.clip(soft(frame, 2) + generator.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)
    assert reasons(frame, faces, policy) == ["already_sharp"]
    assert reasons(soft(frame, 1.5), faces, policy) == ["chosen"]
    assert reasons(noisy, faces, policy) == ["chosen"]
    assert reasons(np.repeat(soft(frame, 1.5)[..., :1], 1, 2)[..., 0], faces, policy) == ["chosen"], "gray"


def test_detail_and_contrast_of_a_flat_frame_are_none() -> None:
    assert fine_detail(np.full((128, 128), 90, np.float32)) == 0
    assert least_contrast(np.full((64, 64), 90, np.float32)) == 0


def test_noise_alone_is_no_detail() -> None:
    noise = np.random.default_rng(0).normal(128, 10, (256, 256)).astype(np.float32)
    assert fine_detail(noise) < 0.5


def test_only_the_centre_or_the_largest_of_those_that_pass() -> None:
    placed = [Placed(FACE, 50, 100, 26), Placed(FACE, 150, 100, 18), Placed(FACE, 250, 100, 40)]
    photo, faces = photo_and_faces(*placed)
    assert reasons(photo, faces, replace(POLICY, only_center=True)) == [
        "not_center",
        "chosen",
        "larger_than_model",
    ]
    assert reasons(photo, faces, replace(POLICY, only_largest=True))[:2] == ["chosen", "not_largest"]
    assert reasons(photo, [], replace(POLICY, only_largest=True)) == []


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one"):
        ChoicePolicy(128, only_center=True, only_largest=True)
    with pytest.raises(UsageError, match="expected more than 0"):
        ChoicePolicy(128, min_eyes_px=0)
