"""What is in a dataset, in figures: bytes of each column, and histograms of the draws of Eq. 13 and of the
low-quality faces.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation import DegradationParams
from diffbfr.shards import ShardedDataset
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD

NUM_BINS: Final = 24
DRAWS: Final = ("sigma", "r", "delta", "q")
_BARS: Final = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Histogram:
    """How often values fell into bins of equal width: `edges` has one entry more than `counts`."""

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float

    def bars(self) -> str:
        """One character a bin, as high as its count; a bin that is not empty shows."""
        top = max(self.counts)
        return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in self.counts)


@dataclass(frozen=True)
class ColumnSize:
    """The bytes of one column's members, without the tars' headers; `smallest`, `median` and `largest` are
    of one file.
    """

    column: str
    num_bytes: int
    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class Summary:
    """A dataset in figures; `gray` and `flipped` are shares of all variants."""

    columns: tuple[ColumnSize, ...]
    histograms: tuple[Histogram, ...]
    gray: float
    flipped: float


def summarize(dataset: ShardedDataset) -> Summary:
    """Count what `dataset` holds; pictures are not read."""
    draws = [params for sample in dataset.samples for params in sample.variants]
    units = {"sigma": f"px of {dataset.info.hq_px}", "r": "", "delta": "of 255", "q": "JPEG quality"}
    histograms = [histogram(name, units[name], _values(draws, name)) for name in DRAWS]
    jpegs = np.concatenate(
        [dataset.lengths(LQ_COLUMN, name) for name in dataset.column(LQ_COLUMN).names if name != LQ_RECORD]
    )
    histograms.append(histogram("lq file", "kB", jpegs / 1000))
    return Summary(
        columns=tuple(_size(dataset, column.column, column.names) for column in dataset.columns),
        histograms=tuple(histograms),
        gray=float(np.mean([params.gray for params in draws])),
        flipped=float(np.mean([params.flip for params in draws])),
    )


def histogram(name: str, unit: str, values: NDArray[np.float64]) -> Histogram:
    """Count values in `NUM_BINS` bins between the smallest and the largest."""
    counts, edges = np.histogram(values, bins=NUM_BINS)
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), float(values.mean()))


def _values(draws: Iterable[DegradationParams], name: str) -> NDArray[np.float64]:
    return np.array([getattr(params, name) for params in draws], dtype=np.float64)


def _size(dataset: ShardedDataset, column: str, names: tuple[str, ...]) -> ColumnSize:
    lengths = np.concatenate([dataset.lengths(column, name) for name in names])
    return ColumnSize(
        column, int(lengths.sum()), int(lengths.min()), int(np.median(lengths)), int(lengths.max())
    )
