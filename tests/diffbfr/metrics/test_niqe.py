"""NIQE: against an implementation in scipy, and the numbers of published code on given pictures."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.special import gamma
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.metrics.luma import luma
from diffbfr.metrics.niqe import PristineModel, block_features, load_pristine, niqe
from tests.diffbfr.metrics.pictures import cached, faces, texture

OF_MMAGIC = ((1, 86.46310742335736), (2, 32.673983090210335))
"""Smoothing of `texture`, and NIQE of it by mmagic 1.2.0 with its parameters."""


def by_scipy(gray: NDArray[np.float64]) -> NDArray[np.float64]:
    """The features of all blocks, block by block, by searching all shapes."""
    rows, columns = gray.shape[0] // 96, gray.shape[1] // 96
    offset = np.arange(7) - 3
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    picture, scales = gray[: rows * 96, : columns * 96], []
    for px in (96, 48):
        mean = convolve(picture, window, mode="nearest")
        deviation = np.sqrt(np.abs(convolve(picture**2, window, mode="nearest") - mean**2))
        difference = picture - mean
        difference[np.abs(difference) < 1e-9] = 0
        normal = difference / (deviation + 1)
        blocks = [
            normal[row * px : (row + 1) * px, column * px : (column + 1) * px]
            for column in range(columns)
            for row in range(rows)
        ]
        scales.append(np.array([features_of(block) for block in blocks]))
        picture = halved(picture)
    return np.concatenate(scales, axis=1)


def features_of(block: NDArray[np.float64]) -> list[float]:
    shape, left, right = fit(block)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = fit(block * np.roll(block, shift, axis=(0, 1)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return features


SHAPES = np.arange(0.2, 10.001, 0.001)
MOMENTS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))


def fit(values: NDArray[np.float64]) -> tuple[float, float, float]:
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    wanted = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = SHAPES[np.argmin((MOMENTS - wanted) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def halved(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each output is 8 weighted inputs around its centre; mirrored at the borders."""
    for _ in range(2):
        wide = np.pad(picture, ((4, 4), (0, 0)), mode="symmetric")
        rows = []
        for row in range(picture.shape[0] // 2):
            places = np.arange(2 * row - 3, 2 * row + 5)
            x = np.abs(places - (2 * row + 0.5)) / 2
            weight = np.where(
                x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x <= 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
            )
            rows.append((weight / weight.sum()) @ wide[places + 4])
        picture = np.array(rows).T
    return picture


def one(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture)[None]


def test_features_are_those_of_scipy() -> None:
    for picture in (texture(200, 300, 2), faces()[0]):
        gray = luma(one(picture))[0, ..., 0].round()
        np.testing.assert_allclose(block_features(gray), by_scipy(gray.numpy()), rtol=0, atol=1e-9)


def test_the_distance_is_that_of_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(36, 36))
    pristine = PristineModel(torch.from_numpy(rng.normal(size=36)), torch.from_numpy(mix @ mix.T))
    picture = texture(200, 300, 2)
    features = block_features(luma(one(picture))[0, ..., 0].round()).numpy()
    difference = features.mean(0) - pristine.mean.numpy()
    pooled = (np.cov(features, rowvar=False) + pristine.covariance.numpy()) / 2
    wanted = np.sqrt(difference @ np.linalg.inv(pooled) @ difference)
    assert abs(float(niqe(one(picture), pristine)) - wanted) < 1e-8


def test_a_picture_alone_has_the_value_that_it_has_in_a_batch_and_a_flat_one_has_none() -> None:
    pristine = PristineModel(torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64))
    batch = torch.from_numpy(np.stack([texture(192, 192), np.full((192, 192, 3), 128, np.uint8)]))
    values = niqe(batch, pristine)
    assert values[0] == niqe(batch[:1], pristine)[0]
    assert values[1].isnan()


def test_small_pictures_are_refused() -> None:
    pristine = PristineModel(torch.zeros(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64))
    with pytest.raises(UsageError, match="NIQE got pictures of 191 x 300; it needs 192 px a side"):
        niqe(one(texture(191, 300)), pristine)


@pytest.mark.parametrize(("smooth_px", "wanted"), OF_MMAGIC)
def test_given_pictures_have_the_values_of_published_code(smooth_px: int, wanted: float) -> None:
    found = float(niqe(one(texture(256, 288, smooth_px)), load_pristine(cached("niqe-pristine"))))
    assert abs(found - wanted) < 1e-5
