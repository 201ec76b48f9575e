"""The Frechet distance against closed forms and scipy's square root, and moments that need no memory."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from diffbfr.errors import UsageError
from diffbfr.metrics import frechet
from diffbfr.metrics.frechet import (
    FeatureStatistics,
    MomentAccumulator,
    frechet_distance,
    from_npz,
    to_npz,
)


def statistics(features: NDArray[np.float64], chunk: int = 7, embedding: str = "e") -> FeatureStatistics:
    moments = MomentAccumulator(features.shape[1])
    for start in range(0, len(features), chunk):
        moments.add(features[start : start + chunk])
    return moments.statistics(embedding)


def gaussian(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> FeatureStatistics:
    return FeatureStatistics("e", 10_000, mean, covariance)


def test_two_gaussians_that_commute_have_the_distance_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    a, b = rng.uniform(0.1, 4, 8), rng.uniform(0.1, 4, 8)
    mean_a, mean_b = rng.normal(size=8), rng.normal(size=8)
    wanted = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(gaussian(mean_a, basis * a @ basis.T), gaussian(mean_b, basis * b @ basis.T))
    assert abs(found - wanted) < 1e-6


def test_one_dimension_is_the_difference_of_means_and_deviations() -> None:
    a, b = gaussian(np.array([1.0]), np.array([[4.0]])), gaussian(np.array([-2.0]), np.array([[9.0]]))
    assert abs(frechet_distance(a, b) - (9 + 1)) < 1e-12
    assert abs(frechet_distance(a, a)) < 1e-12


@pytest.mark.parametrize("count", [400, 20])
def test_features_have_the_distance_by_scipys_square_root(count: int) -> None:
    """Also with fewer vectors than dimensions, where scipy's root needs its real part."""
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(32, 32))
    x, y = rng.normal(size=(count, 32)) @ mix, rng.normal(size=(count, 32)) + 0.3
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(a @ b))
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    tolerance = 1e-5 if count == 400 else 1e-4
    assert abs(frechet_distance(statistics(x), statistics(y)) - wanted) < tolerance * max(1, wanted)


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (3, 7), (50, 7), (3, 512)])
def test_moments_are_those_of_all_vectors_at_once(
    chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 features with a mean far from zero, as networks give them."""
    monkeypatch.setattr(frechet, "BLOCK_VECTORS", block)
    features = (np.random.default_rng(2).normal(size=(50, 6)) + 1000).astype(np.float32)
    found = statistics(features, chunk)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=0, atol=1e-11)
    assert (found.count, found.is_singular) == (50, False)
    assert statistics(features[:6]).is_singular


def test_one_picture_has_no_covariance_and_nan_is_refused() -> None:
    with pytest.raises(UsageError, match="a covariance of 1 pictures; expected at least 2, and 4"):
        statistics(np.zeros((1, 3)))
    with pytest.raises(UsageError, match="NaN or infinity"):
        statistics(np.full((2, 3), np.nan))
    with pytest.raises(UsageError, match="expected n x 3"):
        MomentAccumulator(3).add(np.zeros((2, 4)))


def test_statistics_of_two_embeddings_are_not_compared() -> None:
    features = np.random.default_rng(3).normal(size=(20, 3))
    with pytest.raises(UsageError, match=r"statistics of e .3. against f .3.; expected one embedding"):
        frechet_distance(statistics(features), statistics(features, embedding="f"))


def test_statistics_are_read_as_they_were_written() -> None:
    written = statistics(np.random.default_rng(4).normal(size=(20, 3)))
    read = from_npz(to_npz(written), "a.npz")
    assert (read.embedding, read.count, read.source) == ("e", 20, "")
    np.testing.assert_array_equal(read.mean, written.mean)
    np.testing.assert_array_equal(read.covariance, written.covariance)


def test_statistics_of_another_program_are_taken_by_their_width(tmp_path: Path) -> None:
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    read = from_npz((tmp_path / "fid.npz").read_bytes(), "fid.npz")
    assert (read.embedding, read.count) == ("inception-2015-12-05", 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no statistics"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, "expected d and d x d"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "NaN or infinity"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "facts": np.array("no json")}, "holds no statistics"),
    ],
)
def test_a_file_without_statistics_is_one_line(
    arrays: dict[str, NDArray[np.float64]], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        from_npz((tmp_path / "a.npz").read_bytes(), "a.npz")


def test_a_pickle_in_a_file_of_statistics_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.array([None, json.dumps({})], dtype=object), sigma=np.eye(2))
    with pytest.raises(UsageError, match="holds no statistics"):
        from_npz((tmp_path / "a.npz").read_bytes(), "a.npz")
