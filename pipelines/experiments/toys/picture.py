"""The picture of Figure 2: a histogram of labels, and a grid of generated digits of each model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pipelines.experiments.toys.mnist import DIGITS, PX

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRID: Final = 10
"""Digits along a side of a grid."""
_COLOURS: Final = ("#888888", "#1f77b4", "#d62728")


def tile(pixels: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """The first 100 digits as one picture, row by row; black where there are fewer."""
    shown = np.zeros((GRID * GRID, PX, PX), np.uint8)
    shown[: len(pixels)] = pixels[: GRID * GRID]
    rows = shown.reshape(GRID, GRID, PX, PX)
    return rows.transpose(0, 2, 1, 3).reshape(GRID * PX, GRID * PX)


def draw(
    shares: Mapping[str, "NDArray[np.float64]"], grids: Mapping[str, "NDArray[np.uint8]"], path: Path
) -> None:
    """Draw the shares by title, each [seeds, 10] with its range over seeds, and the digits by title."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1,
        1 + len(grids),
        figsize=(5.5 + 3.2 * len(grids), 3.4),
        width_ratios=[1.7] + [1] * len(grids),
        layout="constrained",
    )
    width = 0.8 / len(shares)
    for number, ((title, values), colour) in enumerate(zip(shares.items(), _COLOURS, strict=False)):
        mean = values.mean(axis=0)
        places = np.arange(DIGITS) + (number - (len(shares) - 1) / 2) * width
        ranges = np.stack([mean - values.min(axis=0), values.max(axis=0) - mean])
        bars = ranges if len(values) > 1 else None
        axes[0].bar(places, mean, width, yerr=bars, label=title, color=colour, error_kw={"elinewidth": 1})
    axes[0].set(yscale="log", ylim=(5e-4, 1), xlabel="label", ylabel="share", xticks=range(DIGITS))
    axes[0].legend(fontsize=8)
    for axis, (title, pixels) in zip(axes[1:], grids.items(), strict=True):
        axis.imshow(tile(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
