"""The detail that a face kept falls with every degradation of it but a JPEG's, and does not hear light and contrast."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.faces.detail import adaptive_fidelity, kept_detail
from diffbfr.synthetic import render_face

Gray = NDArray[np.float32]
FACES = [render_face(seed, 128).pixels for seed in range(4)]


def gray(pixels: NDArray[np.uint8]) -> Gray:
    return np.asarray(pixels.astype(np.float32).mean(2), np.float32)


def blurred(face: Gray, sigma: float) -> Gray:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), sigma))


def enlarged(face: Gray, factor: float) -> Gray:
    small = cv2.resize(face, (int(128 / factor),) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (128, 128), interpolation=cv2.INTER_LINEAR))


def noisy(face: Gray, sigma: float) -> Gray:
    drawn = np.random.default_rng(0).normal(0, sigma, face.shape)
    return np.clip(face + drawn, 0, 255).astype(np.float32)


@pytest.mark.parametrize(
    ("degrade", "levels"),
    [(blurred, (0.6, 1.0, 1.6, 2.5, 4.0)), (enlarged, (1.5, 2.0, 4.0, 8.0)), (noisy, (8.0, 16.0, 32.0))],
)
def test_each_stronger_degradation_leaves_less(
    degrade: Callable[[Gray, float], Gray], levels: tuple[float, ...]
) -> None:
    found = [np.mean([kept_detail(gray(face)) for face in FACES])]
    found += [np.mean([kept_detail(degrade(gray(face), level)) for face in FACES]) for level in levels]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


def test_it_spans_the_whole_range_and_noise_alone_is_no_detail() -> None:
    for face in FACES:
        assert kept_detail(gray(face)) > 0.9
        assert kept_detail(blurred(gray(face), 4.0)) < 0.05
    flat = np.full((128, 128), 90, np.float32)
    assert kept_detail(flat) == 0
    assert kept_detail(noisy(blurred(gray(FACES[0]), 4.0), 6.0)) < 0.15


def test_light_and_contrast_change_nothing() -> None:
    soft = blurred(gray(FACES[0]), 1.0)
    assert kept_detail(0.5 * soft + 40) == pytest.approx(kept_detail(soft), abs=1e-4)


def test_the_fidelity_is_the_papers_without_detail_and_the_most_with_all() -> None:
    assert [adaptive_fidelity(detail) for detail in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
