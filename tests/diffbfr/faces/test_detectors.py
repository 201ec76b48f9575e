"""The two detectors with their weights, on faces whose places are known; skipped where the weights are not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces.detect import Face
from diffbfr.faces.search import FaceSearch
from diffbfr.synthetic import render_face
from tests.diffbfr.faces.detector_files import real_detector
from tests.diffbfr.faces.scenes import Placed, background, compose

DETECTORS = ("yunet", "mtcnn")


def scene_of(*faces: Placed, seed: int = 0) -> NDArray[np.uint8]:
    return compose(background(240, 320, seed), faces)


def placed_well(face: Face, truth: Placed, at_most: float) -> bool:
    """Whether the mean error of the points is below a share of the eye distance."""
    off = np.linalg.norm(face.points_array - truth.points, axis=1)
    return float(off.mean()) < at_most * truth.eyes_px


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("turn", [0, 90, 135, 180])
def test_a_turned_procedural_face_is_found_once_with_its_points(name: str, turn: int) -> None:
    truth = Placed(render_face(1).pixels, 150, 120, 30, turn)
    faces = FaceSearch(real_detector(name)).detect(scene_of(truth))
    assert len(faces) == 1
    assert placed_well(faces[0], truth, 0.2)


@pytest.mark.parametrize("name", DETECTORS)
def test_small_faces_beside_each_other_are_all_found(name: str) -> None:
    truths = [Placed(render_face(i).pixels, 60 + 90 * i, 120, 10 + 6 * i) for i in (0, 1, 2)]
    faces = FaceSearch(real_detector(name)).detect(scene_of(*truths))
    assert len(faces) == 3
    for truth in truths:
        assert any(placed_well(face, truth, 0.2) for face in faces)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_scene_without_faces_has_none(name: str) -> None:
    assert list(FaceSearch(real_detector(name)).detect(background(240, 320, 3))) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_photo_gives_the_same_faces(name: str) -> None:
    scene = scene_of(Placed(render_face(2).pixels, 150, 120, 30, 20))
    detector = real_detector(name)
    assert FaceSearch(detector).detect(scene) == FaceSearch(detector).detect(scene)
    assert FaceSearch(real_detector(name)).detect(scene) == FaceSearch(detector).detect(scene)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_photo_of_a_few_pixels_has_no_face(name: str) -> None:
    detector = FaceSearch(real_detector(name))
    for shape in ((1, 1, 3), (3, 40, 3), (9, 9, 3)):
        assert list(detector.detect(np.zeros(shape, np.uint8))) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_a_public_photo_has_its_one_face(name: str) -> None:
    """scikit-image's astronaut, in the public domain; the pupils lie at (203, 101) and (247, 103)."""
    from skimage.data import astronaut

    (face,) = FaceSearch(real_detector(name), turns=(0,)).detect(astronaut())
    assert np.abs(face.points_array[:2] - [(203, 101), (247, 103)]).max() < 6
