"""The metrics of all pictures together, from the parts of the tasks, one part in memory at a time."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from diffbfr.metrics.frechet import FeatureStatistics, MomentAccumulator, frechet_distance
from diffbfr.metrics.kid import kernel_distance
from pipelines.evaluation.metric_table import MetricEntry
from pipelines.evaluation.pair_task import PairPart

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

THOUSANDTHS: Final = 1000.0


@dataclass(frozen=True)
class SetScore:
    """One value for all pictures; `deviation` is that over the subsets of KID, 0 elsewhere."""

    value: float
    deviation: float = 0.0
    note: str = ""


class FeatureFile:
    """Feature vectors in a temporary file, read by their numbers."""

    def __init__(self, path: Path, width: int) -> None:
        self._file = path.open("w+b")
        self._width = width
        self._count = 0

    def append(self, features: "NDArray[np.float32]") -> None:
        """Add vectors at the end."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(features, np.float32).tobytes())
        self._count += len(features)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, numbers: "NDArray[np.int64]") -> "NDArray[Any]":
        rows = np.empty((len(numbers), self._width), np.float32)
        row_bytes = 4 * self._width
        for row, number in zip(rows, numbers, strict=True):
            self._file.seek(int(number) * row_bytes)
            row[...] = np.frombuffer(self._file.read(row_bytes), np.float32)
        return rows

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self._file.close()


def score_sets(
    parts: Iterable[PairPart],
    wanted: Mapping[str, MetricEntry],
    given: FeatureStatistics | None,
    source: str = "",
) -> tuple[dict[str, SetScore], dict[str, FeatureStatistics]]:
    """The set metrics of `wanted`, and the statistics of the references by embedding.

    `source` says in them what the references are. `given` replaces the references of its embedding; KID needs
    both sides' features and is left out then.
    """
    moments: dict[tuple[str, bool], MomentAccumulator] = {}
    with tempfile.TemporaryDirectory() as scratch:
        files = _KidFiles(Path(scratch)) if "kid" in wanted and given is None else None
        for part in parts:
            for is_reference, features in ((False, part.restored), (True, part.references)):
                for embedding, rows in features.items():
                    _add(moments, (embedding, is_reference), rows)
                    if files is not None and embedding == wanted["kid"].embedding:
                        files.append(is_reference, rows)
        scores, references = _frechet_scores(moments, wanted, given, source)
        if files is not None:
            scores["kid"] = files.score()
    return scores, references


class _KidFiles:
    """The features of both sides in two files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sides: dict[bool, FeatureFile] = {}

    def append(self, is_reference: bool, rows: "NDArray[np.float32]") -> None:
        if is_reference not in self._sides:
            path = self._folder / f"{'references' if is_reference else 'restored'}.f32"
            self._sides[is_reference] = FeatureFile(path, rows.shape[1])
        self._sides[is_reference].append(rows)

    def score(self) -> SetScore:
        with self._sides[False] as restored, self._sides[True] as references:
            found = kernel_distance(restored, references)
        note = f"subsets of {found.subset_size}"
        return SetScore(found.mean * THOUSANDTHS, found.deviation * THOUSANDTHS, note)


def _add(
    moments: dict[tuple[str, bool], MomentAccumulator], name: tuple[str, bool], rows: "NDArray[np.float32]"
) -> None:
    if name not in moments:
        moments[name] = MomentAccumulator(rows.shape[1])
    moments[name].add(rows)


def _frechet_scores(
    moments: Mapping[tuple[str, bool], MomentAccumulator],
    wanted: Mapping[str, MetricEntry],
    given: FeatureStatistics | None,
    source: str,
) -> tuple[dict[str, SetScore], dict[str, FeatureStatistics]]:
    scores: dict[str, SetScore] = {}
    references: dict[str, FeatureStatistics] = {}
    for key, entry in wanted.items():
        if key == "kid":
            continue
        restored = moments[entry.embedding, False].statistics(entry.embedding)
        if given is not None and given.embedding == entry.embedding:
            references[entry.embedding] = given
        else:
            references[entry.embedding] = moments[entry.embedding, True].statistics(entry.embedding, source)
        distance = frechet_distance(restored, references[entry.embedding])
        scale = THOUSANDTHS if entry.info.unit == "1e-3" else 1.0
        scores[key] = SetScore(distance * scale, note=_note([restored, references[entry.embedding]]))
    return scores, references


def _note(sides: Sequence[FeatureStatistics]) -> str:
    few = [side.count for side in sides if 0 < side.count <= len(side.mean)]
    if not few:
        return ""
    full = len(sides[0].mean) + 1
    return f"{few[0]} pictures give no covariance of full rank ({full} would): biased upwards"
