"""A paired test: whether two methods differ on the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.metrics.intervals import Interval, bootstrap


@dataclass(frozen=True)
class PairedDifference:
    """The mean of the differences with its 95 % interval, and the two-sided p-value of no difference."""

    difference: Interval
    p_value: float


def paired_difference(
    values: Sequence[float], others: Sequence[float], flips: int = 10_000, seed: int = 0
) -> PairedDifference:
    """`others` minus `values`, a pair a picture; deterministic.

    If the methods were exchangeable, each difference could as well have the other sign: p is the share of
    random choices of signs whose mean is at least as far from zero (Fisher's randomisation test), with the
    observed one counted. The interval is that of the bootstrap.
    """
    if len(values) != len(others):
        raise UsageError(
            f"found {len(values)} values against {len(others)}; expected a pair a picture; measure the same "
            "pictures"
        )
    differences = np.asarray(others, dtype=np.float64) - np.asarray(values, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise UsageError(
            "a difference is infinite or no number; expected finite values; a method that returns the ground "
            "truth has no PSNR to compare"
        )
    observed = abs(differences.mean()) * (1 - 1e-12)  # sums in another order are no smaller
    rng = np.random.default_rng(seed)
    # Signs are drawn in blocks, so that the memory does not grow with the number of pictures.
    block = max(1, (1 << 22) // len(differences)) if len(differences) else 1
    extreme = 0
    for start in range(0, flips, block):
        signs = rng.integers(0, 2, size=(min(block, flips - start), len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences / len(differences)) >= observed).sum())
    return PairedDifference(bootstrap(differences.tolist(), seed=seed), (extreme + 1) / (flips + 1))
