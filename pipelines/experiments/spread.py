"""The mean of a figure over a few trainings that differ in their seed, and its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from diffbfr.errors import UsageError

T_QUANTILES: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantile of Student's t for 1 to 9 degrees of freedom."""
NORMAL_QUANTILE: Final = 1.959964
"""The 97.5 % quantile of the normal distribution."""
MAX_SEEDS: Final = len(T_QUANTILES) + 1


@dataclass(frozen=True)
class Spread:
    """Mean over seeds with its 95 % interval by Student's t (infinite for one seed), lowest and highest."""

    mean: float
    half_width: float
    lowest: float
    highest: float

    @property
    def low(self) -> float:
        """Lower end of the interval of the mean."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval of the mean."""
        return self.mean + self.half_width


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value a seed; UsageError for none, and for more than `MAX_SEEDS`."""
    if not 1 <= len(values) <= MAX_SEEDS:
        raise UsageError(f"found {len(values)} seeds; expected 1 to {MAX_SEEDS}; give other seeds")
    data = np.asarray(values, np.float64)
    half_width = math.inf
    if len(data) > 1:
        half_width = T_QUANTILES[len(data) - 2] * float(data.std(ddof=1)) / math.sqrt(len(data))
    return Spread(float(data.mean()), half_width, float(data.min()), float(data.max()))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds such as `0,1,2`; UsageError unless they are different whole numbers, 1 to `MAX_SEEDS` of them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts) or len(parts) > MAX_SEEDS:
        raise UsageError(
            f"found the seeds {text!r}; expected 1 to {MAX_SEEDS} different whole numbers, such as 0,1,2"
        )
    return tuple(map(int, parts))
