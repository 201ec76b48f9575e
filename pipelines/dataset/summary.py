"""Statistics of a dataset: bytes of each column, histograms of Eq. 13's parameters and of LQ file sizes."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation import DegradationParams
from diffbfr.shards import ShardedDataset
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD
from diffbfr.shards.valid_area import valid_area

NUM_BINS: Final = 24
PARAMETERS: Final = ("sigma", "r", "delta", "q")
_AREA_PX: Final = 32
_BARS: Final = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width; `edges` has one entry more than `counts`."""

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float

    def bars(self) -> str:
        """One bar character for each bin; every bin that is not empty is visible."""
        top = max(self.counts)
        return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in self.counts)


@dataclass(frozen=True)
class ColumnSize:
    """Bytes of one column's members without tar headers; `smallest`, `median`, `largest` are file sizes."""

    column: str
    num_bytes: int
    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class Summary:
    """Statistics of a dataset; `gray` and `flipped` are fractions of all variants.

    `photos` is the number of photos that the faces are of, `inside` the median share of an aligned frame that
    its photo holds, 1 without aligned faces.
    """

    columns: tuple[ColumnSize, ...]
    histograms: tuple[Histogram, ...]
    gray: float
    flipped: float
    photos: int
    inside: float


def summarize(dataset: ShardedDataset) -> Summary:
    """Statistics from the manifest alone; no image is read."""
    variants = list(chain.from_iterable(sample.variants for sample in dataset.samples))
    units = {"sigma": f"px of {dataset.info.hq_px}", "r": "", "delta": "of 255", "q": "JPEG quality"}
    histograms = [histogram(name, units[name], _values(variants, name)) for name in PARAMETERS]
    # file sizes are in the column's index, so that no tar is opened
    jpegs = np.concatenate(
        [dataset.lengths(LQ_COLUMN, name) for name in dataset.column(LQ_COLUMN).names if name != LQ_RECORD]
    )
    histograms.append(histogram("lq file", "kB", jpegs / 1000))
    faces = [sample.face for sample in dataset.samples if sample.face is not None]
    inside = [float(valid_area(face, _AREA_PX).mean()) for face in faces]
    return Summary(
        columns=tuple(_size(dataset, column.column, column.names) for column in dataset.columns),
        histograms=tuple(histograms),
        gray=float(np.mean([params.gray for params in variants])),
        flipped=float(np.mean([params.flip for params in variants])),
        photos=len({sample.source for sample in dataset.samples}),
        inside=float(np.median(inside)) if inside else 1.0,
    )


def histogram(name: str, unit: str, values: NDArray[np.float64]) -> Histogram:
    """Count values in `NUM_BINS` bins between the smallest and the largest."""
    counts, edges = np.histogram(values, bins=NUM_BINS)
    return Histogram(name, unit, tuple(edges.tolist()), tuple(counts.tolist()), float(values.mean()))


def _values(variants: Iterable[DegradationParams], name: str) -> NDArray[np.float64]:
    return np.array([getattr(params, name) for params in variants], dtype=np.float64)


def _size(dataset: ShardedDataset, column: str, names: tuple[str, ...]) -> ColumnSize:
    lengths = np.concatenate([dataset.lengths(column, name) for name in names])
    return ColumnSize(
        column, int(lengths.sum()), int(lengths.min()), int(np.median(lengths)), int(lengths.max())
    )
