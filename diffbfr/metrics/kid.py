"""Kernel inception distance (Binkowski et al., arXiv:1801.01401): unbiased, so that few pictures suffice."""

from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo

SUBSET_SIZE: Final = 1000
NUM_SUBSETS: Final = 100

KID: Final = MetricInfo(
    name="KID",
    version="1",
    unit="1e-3",
    better="lower",
    protocol="squared maximum mean discrepancy with the kernel (x y / d + 1)^3 over the features of FID, "
    f"unbiased; mean of {NUM_SUBSETS} pairs of random subsets of {SUBSET_SIZE} pictures, or of all if there "
    "are fewer; times 1,000",
)


@dataclass(frozen=True)
class KernelDistance:
    """Mean and deviation over the subsets, of the squared discrepancy itself (not times 1,000)."""

    mean: float
    deviation: float
    subset_size: int


@runtime_checkable
class Rows(Protocol):
    """Feature vectors that are read by their numbers: an array, or a file."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, numbers: NDArray[np.int64], /) -> NDArray[Any]:
        """The vectors of these numbers, which rise."""
        ...


def kernel_distance(
    features: Rows,
    others: Rows,
    subset_size: int = SUBSET_SIZE,
    num_subsets: int = NUM_SUBSETS,
    seed: int = 0,
) -> KernelDistance:
    """KID of two sets of features, which may lie in files: one pair of subsets is in memory at a time."""
    size = min(subset_size, len(features), len(others))
    if size < 2:
        raise UsageError(
            f"KID of {len(features)} against {len(others)} pictures; expected at least 2 on both sides; give "
            "more"
        )
    rng = np.random.default_rng(seed)
    # Subsets that hold everything are all the same.
    count = 1 if size == len(features) == len(others) else num_subsets
    values = []
    for _ in range(count):
        x, y = (
            np.asarray(side[np.sort(rng.choice(len(side), size, replace=False))], np.float64)
            for side in (features, others)
        )
        values.append(squared_discrepancy(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)), size)


def squared_discrepancy(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of one size under the cubic kernel."""
    n = len(x)
    inside = (_sum_of_pairs(x) + _sum_of_pairs(y)) / (n * (n - 1))
    return float(inside - 2 * _kernel(x, y).mean())


def _sum_of_pairs(x: Float[np.ndarray, "n d"]) -> float:
    kernel = _kernel(x, x)
    return float(kernel.sum() - np.trace(kernel))


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    base = x @ y.T / x.shape[1] + 1
    # a power of floats takes ten times as long
    kernel: NDArray[np.float64] = base * base * base
    return kernel
