"""KID against its definition in loops, and without bias."""

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics.kid import kernel_distance, squared_discrepancy


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n = len(x)
    inside = sum(
        kernel(side[i], side[j]) for side in (x, y) for i in range(n) for j in range(n) if i != j
    ) / (n * (n - 1))
    return inside - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


def test_the_discrepancy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)) + 0.5
    assert abs(squared_discrepancy(x, y) - by_loops(x, y)) < 1e-12


def test_few_vectors_have_the_same_mean_as_many() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 4)), rng.normal(size=(3000, 4)) + 0.5
    few, many = (kernel_distance(x, y, size, 200) for size in (20, 300))
    assert abs(few.mean - many.mean) < 4 * few.deviation / 200**0.5
    assert few.deviation > many.deviation


def test_two_draws_of_one_distribution_have_a_distance_about_zero() -> None:
    rng = np.random.default_rng(2)
    found = kernel_distance(rng.normal(size=(2000, 4)), rng.normal(size=(2000, 4)), 200, 50)
    assert abs(found.mean) < 4 * found.deviation
    assert found.subset_size == 200


def test_the_same_seed_gives_the_same_number_from_a_memory_map(tmp_path: object) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(60, 4)).astype(np.float32)
    np.save(f"{tmp_path}/x.npy", x)
    mapped = np.load(f"{tmp_path}/x.npy", mmap_mode="r")
    assert kernel_distance(x, y, 20, 5) == kernel_distance(mapped, y, 20, 5)


def test_one_picture_is_too_few() -> None:
    with pytest.raises(UsageError, match="KID of 1 against 5 pictures; expected at least 2"):
        kernel_distance(np.zeros((1, 4)), np.zeros((5, 4)))
