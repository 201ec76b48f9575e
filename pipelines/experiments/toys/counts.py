"""How close generated digits come to the distribution of the training digits, by their labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.experiments.toys.mnist import TAIL, label_shares


@dataclass(frozen=True)
class LabelCounts:
    """The labels of one set of digits. `shares` are fractions of the ten labels, `clear` of clear digits."""

    shares: tuple[float, ...]
    clear: float
    total_variation: float
    """Half the summed difference of the shares from those of the training digits: 0 equal, 1 disjoint."""
    coverage: float
    """Mean over the tail labels of generated over training share, each at most 1."""
    tail_share: float
    missed: tuple[int, ...]
    """Tail labels with less than half of their training share."""


def count_labels(
    labels: NDArray[np.uint8], clear: NDArray[np.bool_], wanted: NDArray[np.float64]
) -> LabelCounts:
    """Compare labels with the wanted shares of the ten labels, of which none of the tail is 0."""
    shares = label_shares(labels)
    tail = list(TAIL)
    ratios = shares[tail] / wanted[tail]
    return LabelCounts(
        shares=tuple(shares.tolist()),
        clear=float(clear.mean()),
        total_variation=float(np.abs(shares - wanted).sum() / 2),
        coverage=float(np.minimum(ratios, 1).mean()),
        tail_share=float(shares[tail].sum()),
        missed=tuple(label for label, ratio in zip(TAIL, ratios, strict=True) if ratio < 0.5),
    )
