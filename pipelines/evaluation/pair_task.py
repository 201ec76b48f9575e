"""Measure some pairs on a worker, and keep what was found in a file, so that it is measured once.

FOLDER/000000.npz    keys, a column of values for each metric, features for each embedding

The file is written last and whole: a command that is run again reads it and measures only what is missing.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.evaluation.metric_table import MetricFiles
from pipelines.evaluation.pairing import Pair, chunks, read_picture
from pipelines.evaluation.probes import PairBatch, Readings, make_probes, measure
from pipelines.execution.staging import staged_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.sources import PhotoSource

PIXELS_AT_ONCE = 512 * 512
"""A batch holds at most so many: VGG's features of one pair of 512 px are 250 MB."""


@dataclass(frozen=True)
class PairTask:
    """Some pairs of two or three sources, and the metrics to measure; all pictures have one size.

    Without `embeds_references` the features of the references are not needed: their statistics are given.
    """

    index: int
    folder: storage.Uri
    restored: "PhotoSource"
    reference: "PhotoSource"
    lq: "PhotoSource | None"
    pairs: tuple[Pair, ...]
    metrics: tuple[str, ...]
    files: MetricFiles
    side_px: tuple[int, int]
    embeds_references: bool = True

    @property
    def place(self) -> storage.Uri:
        """The file of what was found."""
        return storage.join(self.folder, f"{self.index:06}.npz")


@dataclass(frozen=True, eq=False)
class PairPart:
    """What was found in one task; every column and every array has a row a key."""

    keys: tuple[str, ...]
    values: Mapping[str, "NDArray[np.float64]"]
    restored: Mapping[str, "NDArray[np.float32]"]
    references: Mapping[str, "NDArray[np.float32]"]
    seconds: Mapping[str, float]


def make_pair_worker(first: PairTask) -> Callable[[PairTask], int]:
    """Load the networks once; return the function that measures the pairs of a task and writes its file."""
    files = {name: path and str(staged_file(path)) for name, path in asdict(first.files).items()}
    probes = make_probes(first.metrics, MetricFiles(**files))

    def run(task: PairTask) -> int:
        readings = Readings()
        height, width = task.side_px
        for pairs in chunks(task.pairs, max(1, PIXELS_AT_ONCE // (height * width))):
            measure(probes, _read_batch(task, pairs), readings)
        _write(task, readings)
        return len(task.pairs)

    return run


def read_part(place: storage.Uri) -> PairPart:
    """Read the file of a task."""
    with np.load(io.BytesIO(storage.read_bytes(place)), allow_pickle=False) as stored:
        arrays: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}

    def group(kind: str) -> "dict[str, NDArray[Any]]":
        return {
            name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{kind}/")
        }

    seconds = {name: float(value) for name, value in group("seconds").items()}
    keys = tuple(map(str, arrays["keys"]))
    return PairPart(keys, group("values"), group("restored"), group("references"), seconds)


def read_parts(tasks: "tuple[PairTask, ...]") -> Iterator[PairPart]:
    """The parts of all tasks in their order, one in memory at a time."""
    return (read_part(task.place) for task in tasks)


def _read_batch(task: PairTask, pairs: tuple[Pair, ...]) -> PairBatch:
    restored = [read_picture(task.restored, pair.restored) for pair in pairs]
    references = [read_picture(task.reference, pair.reference) for pair in pairs]
    lqs = [None if task.lq is None or pair.lq is None else read_picture(task.lq, pair.lq) for pair in pairs]
    for pair, picture, truth in zip(pairs, restored, references, strict=True):
        _check_size(f"{pair.reference.name} of {task.reference.uri}", truth.shape[:2], task.side_px)
        _check_size(f"{pair.restored.name} of {task.restored.uri}", picture.shape[:2], task.side_px)
    return PairBatch(restored, references, lqs, task.embeds_references)


def _check_size(what: str, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise UsageError(
            f"{what} is {found[1]} x {found[0]}; expected {wanted[1]} x {wanted[0]} as of every picture of "
            "this evaluation; write it at that size"
        )


def _write(task: PairTask, readings: Readings) -> None:
    arrays: dict[str, NDArray[Any]] = {"keys": np.array([pair.key for pair in task.pairs])}
    arrays |= {f"values/{key}": np.array(column) for key, column in readings.values.items()}
    arrays |= {f"restored/{name}": np.stack(rows) for name, rows in readings.restored.items()}
    arrays |= {f"references/{name}": np.stack(rows) for name, rows in readings.references.items()}
    arrays |= {f"seconds/{name}": np.array(value) for name, value in readings.seconds.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_atomic(task.place, buffer.getvalue())
