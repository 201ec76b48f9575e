"""The paired test: exact where it can be counted, calibrated where there is no difference."""

from itertools import product

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics.paired import paired_difference


def test_the_p_value_is_the_share_of_all_signs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=8), rng.normal(0.6, 1, size=8)
    differences = second - first
    means = [np.abs((np.array(signs) * differences).mean()) for signs in product((-1, 1), repeat=8)]
    exact = np.mean(np.array(means) >= np.abs(differences.mean()) - 1e-12)
    found = paired_difference(first.tolist(), second.tolist())
    assert abs(found.p_value - exact) < 0.02
    assert abs(found.difference.mean - differences.mean()) < 1e-12
    assert found == paired_difference(first.tolist(), second.tolist())


def test_without_a_difference_small_p_values_are_as_rare_as_they_should_be() -> None:
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(300):
        values = rng.normal(size=(2, 20))
        p_values.append(paired_difference(*values.tolist(), flips=400).p_value)
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


def test_equal_values_have_no_difference_and_a_constant_one_is_certain() -> None:
    values = [1.0, 2.0, 3.0] * 10
    assert paired_difference(values, values).p_value == 1
    shifted = paired_difference(values, [value + 1 for value in values])
    assert (shifted.difference.low, shifted.difference.high) == (1, 1)
    assert shifted.p_value < 0.001


def test_values_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UsageError, match="found 1 values against 2"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(UsageError, match="infinite or no number"):
        paired_difference([1.0], [float("inf")])
