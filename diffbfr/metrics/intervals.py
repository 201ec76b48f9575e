"""The mean of a metric over images, with the uncertainty that comes from having few of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffbfr.errors import UsageError


@dataclass(frozen=True)
class Interval:
    """Mean of `count` images and the 95 % percentile bootstrap interval of that mean."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over images with its 95 % interval (percentile bootstrap, Efron 1979); same values, same interval.

    One value an image: average the draws of one image first, or the interval is too narrow. An infinite value
    (the PSNR of equal pictures) makes the mean infinite.
    """
    if not values:
        raise UsageError("no values to average; expected one an image; evaluate at least one image")
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), size=(resamples, len(data)))
    means = data[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], method="nearest")
    return Interval(mean=float(data.mean()), low=float(low), high=float(high), count=len(data))
