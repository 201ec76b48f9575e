"""The search of whole photos with a detector that sees upright faces of some sizes only."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces.align import FRAME_EYES_PX, FRAME_POINTS
from diffbfr.faces.detect import Face, as_points, is_same, without_repeats
from diffbfr.faces.search import TILE_PX, FaceSearch, upright_turn
from diffbfr.faces.similarity import Similarity
from tests.diffbfr.faces.dots import DotDetector, draw


def place(x: float, y: float, eyes_px: float, turn: float = 0.0) -> Similarity:
    return (
        Similarity.of_shift(-256, -300)
        .then(Similarity(eyes_px / FRAME_EYES_PX, 0, 0, 0))
        .then(Similarity.of_turn(turn))
        .then(Similarity.of_shift(x, y))
    )


def photo_with(*places: Similarity, height: int = 400, width: int = 500) -> NDArray[np.uint8]:
    photo = np.full((height, width, 3), 128, np.uint8)
    for to_photo in places:
        draw(photo, to_photo)
    return photo


def error(face: Face, to_photo: Similarity) -> float:
    """In eye distances."""
    points = to_photo(FRAME_POINTS)
    off = np.linalg.norm(face.points_array - points, axis=1).max()
    return float(off / np.linalg.norm(points[1] - points[0]))


@pytest.mark.parametrize("turn", [0, 45, 90, 200, 315])
def test_a_head_turned_by_any_angle_is_found_once_and_placed_well(turn: int) -> None:
    to_photo = place(230, 190, 40, turn)
    faces = FaceSearch(DotDetector()).detect(photo_with(to_photo))
    assert len(faces) == 1
    assert error(faces[0], to_photo) < 0.06
    assert (upright_turn(faces[0]) - turn + 180) % 360 - 180 == pytest.approx(0, abs=3)
    assert faces[0].score > 0.9, "the score of the look at the upright crop"


def test_one_look_without_turns_misses_what_lies_on_its_side() -> None:
    photo = photo_with(place(230, 190, 40, 90))
    assert DotDetector().detect(photo) == []
    assert FaceSearch(DotDetector(), turns=(0,)).detect(photo) == []


@pytest.mark.parametrize("eyes_px", [10, 60, 180])
def test_faces_of_every_size_are_found_in_a_large_photo(eyes_px: int) -> None:
    """The detector alone ends at 60 px."""
    to_photo = place(350, 330, eyes_px, 10)
    photo = photo_with(to_photo, height=700, width=740)
    faces = FaceSearch(DotDetector((8.0, 60.0)), turns=(0,)).detect(photo)
    assert len(faces) == 1
    assert error(faces[0], to_photo) < 0.1


def test_a_face_on_the_seam_of_tiles_is_found_once_and_no_call_sees_more_than_a_tile() -> None:
    detector = DotDetector()
    places = [place(TILE_PX - 5, 200, 20), place(TILE_PX * 3 // 4, 300, 60), place(80, 90, 12)]
    photo = photo_with(*places, height=500, width=2600)
    faces = FaceSearch(detector, turns=(0,)).detect(photo)
    assert len(faces) == 3
    for to_photo in places:
        assert min(error(face, to_photo) for face in faces) < 0.1
    assert max(max(shape) for shape in detector.seen) <= TILE_PX


def test_levels_finer_than_the_smallest_face_asked_for_are_left_out() -> None:
    detector = DotDetector()
    photo = photo_with(place(300, 300, 12), place(900, 600, 60), height=1200, width=1500)
    faces = FaceSearch(detector, min_eyes_px=32, turns=(0,)).detect(photo)
    assert [round(face.eyes_px, -1) for face in faces] == [60]
    assert max(max(shape) for shape in detector.seen) <= 1500 / 4


def test_neighbours_are_two_faces() -> None:
    places = [place(100, 190, 40), place(230, 190, 40), place(360, 190, 40, 180)]
    faces = FaceSearch(DotDetector()).detect(photo_with(*places))
    assert len(faces) == 3


def test_a_photo_without_a_face_and_one_of_a_single_pixel_have_none() -> None:
    for shape in ((300, 300, 3), (1, 1, 3), (1, 2000, 3)):
        assert list(FaceSearch(DotDetector()).detect(np.full(shape, 128, np.uint8))) == []


def face_of(left: float, top: float, side: float, score: float = 0.9) -> Face:
    return Face((left, top, left + side, top + side), as_points(FRAME_POINTS), score)


def test_boxes_of_one_face_are_those_that_share_much() -> None:
    assert is_same(face_of(0, 0, 10), face_of(2, 0, 10))
    assert not is_same(face_of(0, 0, 10), face_of(6, 0, 10))
    assert is_same(face_of(0, 0, 10), face_of(1, 1, 5)), "a part of a face"
    assert not is_same(face_of(0, 0, 10), face_of(20, 0, 10))
    kept = without_repeats([face_of(0, 0, 10, 0.5), face_of(1, 0, 10, 0.8), face_of(30, 0, 10, 0.6)])
    assert [face.score for face in kept] == [0.8, 0.6]
