"""The mean of a metric over images, with the uncertainty that comes from having few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffbfr.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """Mean of `count` images and the 95 % percentile bootstrap interval of that mean."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def percent(self) -> "Interval":
        """A ratio as a change in percent: 1.02 is +2."""
        return Interval(100 * (self.mean - 1), 100 * (self.low - 1), 100 * (self.high - 1), self.count)


def bootstrap(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over images with its 95 % interval (percentile bootstrap, Efron 1979); deterministic.

    There is one value per image: average the draws of one image first, or the interval is too narrow. An
    infinite value (the PSNR of equal images) makes the mean infinite.
    """
    data = np.asarray(values, dtype=np.float64)
    means = data[_picks(len(data), resamples, seed)].mean(axis=1)
    return _interval(float(data.mean()), means, len(data))


def bootstrap_ratio(
    values: Sequence[float], others: Sequence[float], resamples: int = 2000, seed: int = 0
) -> Interval:
    """Ratio of two means over the same images, with its 95 % interval.

    `mean` is the mean of `values` over that of `others`. Each resample takes both values of an image.
    """
    if len(values) != len(others):
        raise UsageError(
            f"found {len(values)} values against {len(others)}; expected a pair an image; measure the same "
            "images"
        )
    above, below = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    picks = _picks(len(above), resamples, seed)
    return _interval(
        float(above.mean() / below.mean()), above[picks].mean(axis=1) / below[picks].mean(axis=1), len(above)
    )


def _picks(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Indices of the images of each resample."""
    if not count:
        raise UsageError("no values to average; expected one an image; evaluate at least one image")
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


def _interval(mean: float, resampled: NDArray[np.float64], count: int) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5], method="nearest")
    return Interval(mean=mean, low=float(low), high=float(high), count=count)
