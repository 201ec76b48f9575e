import math

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics.intervals import bootstrap, bootstrap_ratio


def test_interval_of_many_normal_values_is_the_textbook_one() -> None:
    values = np.random.default_rng(3).normal(loc=5, scale=2, size=400)
    interval = bootstrap(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert interval.count == 400


def test_covers_the_true_mean_about_95_times_in_100() -> None:
    draw = np.random.default_rng(4)
    intervals = [bootstrap(draw.exponential(size=60).tolist(), resamples=400) for _ in range(300)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert 0.89 <= covered <= 0.98


def test_same_values_give_the_same_interval() -> None:
    assert bootstrap([1.0, 2.0, 4.0]) == bootstrap([1.0, 2.0, 4.0])


def test_one_infinite_value_makes_the_mean_infinite_and_no_nan() -> None:
    interval = bootstrap([20.0, 21.0, math.inf])
    assert interval.mean == math.inf
    assert not math.isnan(interval.low)
    assert not math.isnan(interval.high)


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one image"):
        bootstrap([])


def test_the_ratio_of_two_means_is_paired() -> None:
    """Faces differ by far more than their two restorations; only pairs of the same face show how little."""
    draw = np.random.default_rng(5)
    faces = draw.uniform(0.2, 2.0, size=200)
    ratio = bootstrap_ratio((faces * draw.normal(1.02, 0.01, size=200)).tolist(), faces.tolist())
    assert ratio.mean == pytest.approx(1.02, abs=0.003)
    assert 1.017 < ratio.low < ratio.mean < ratio.high < 1.023
    assert bootstrap_ratio([1.0, 3.0], [2.0, 2.0]).mean == 1
    assert ratio.count == 200
    assert ratio.percent.mean == pytest.approx(2, abs=0.3)
    assert ratio.percent.low < ratio.percent.mean < ratio.percent.high


def test_values_without_a_partner_are_refused() -> None:
    with pytest.raises(UsageError, match="found 2 values against 1; expected a pair an image"):
        bootstrap_ratio([1.0, 2.0], [1.0])
