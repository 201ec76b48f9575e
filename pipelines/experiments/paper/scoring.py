"""Score the outputs of every arm by the product's own evaluator: one value a seed, arm and metric."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.evaluation.pair_scores import PairScores
from pipelines.experiments.paper.arms import Arm
from pipelines.experiments.paper.numbers import METRICS
from pipelines.experiments.paper.restoring import REFERENCE
from pipelines.experiments.scored_folders import score_folder

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

Values = Mapping[str, Mapping[str, float]]
"""Arm -> metric -> value, of one seed; a metric that was not measured is missing."""


@dataclass(frozen=True)
class Scored:
    """The scores of a hold-out: the values of each seed, and why metrics are missing."""

    seeds: tuple[int, ...]
    values: tuple[Values, ...]
    unavailable: Mapping[str, str]
    num_faces: int
    card: str

    def series(self, arm: str, metric: str) -> tuple[float, ...]:
        """One value a seed; empty if the metric was not measured."""
        return tuple(values[arm][metric] for values in self.values if metric in values[arm])


def score_arms(folder: Path, seeds: Sequence[int], arms: Sequence[Arm], cluster: "Cluster") -> Scored:
    """Score what `restoring` wrote to a folder; what was scored before is read."""
    found = [_score_seed(folder, seed, arms, cluster) for seed in seeds]
    first = next(iter(found[0].values()))
    return Scored(
        seeds=tuple(seeds),
        values=tuple(_values_of(scores) for scores in found),
        unavailable={line.key: line.unavailable for line in first.lines if line.unavailable},
        num_faces=first.data.num_pairs,
        card=f"{first.card.name} v{first.card.version}",
    )


def _values_of(scores: Mapping[str, PairScores]) -> Values:
    return {arm: dict(_measured(found)) for arm, found in scores.items()}


def _measured(scores: PairScores) -> Iterable[tuple[str, float]]:
    return ((line.key, line.value) for line in scores.lines if line.value is not None)


def _score_seed(folder: Path, seed: int, arms: Sequence[Arm], cluster: "Cluster") -> dict[str, PairScores]:
    return {arm.name: _score(folder, seed, arm, cluster) for arm in arms}


def _score(folder: Path, seed: int, arm: Arm, cluster: "Cluster") -> PairScores:
    return score_folder(
        folder / str(seed) / arm.name,
        folder / REFERENCE,
        folder / "scores" / str(seed) / arm.name,
        cluster,
        METRICS,
    )
