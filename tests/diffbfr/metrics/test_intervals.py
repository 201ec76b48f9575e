import math

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.metrics.intervals import bootstrap


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
