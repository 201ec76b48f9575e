"""LPIPS and FID of a cascade's outputs for the studies, where `diffbfr setup metrics` has their weights."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.metrics.info import MetricInfo
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.evaluation.metric_table import installed_files, metric_table
from pipelines.evaluation.pair_scores import PairScores
from pipelines.experiments.cascade_scores import score_cascade

METRICS: Final = ("lpips_alex", "fid")


@dataclass(frozen=True)
class Perceptual:
    """What was measured of one output: LPIPS (Alex) of each face by key, and FID of all; None if not."""

    lpips: dict[str, float] | None
    fid: float | None

    @property
    def means(self) -> dict[str, float]:
        """The mean over faces and FID, by the metrics' names."""
        found = {}
        if self.lpips is not None:
            found[info("lpips_alex").name] = sum(self.lpips.values()) / len(self.lpips)
        if self.fid is not None:
            found[info("fid").name] = self.fid
        return {name: round(value, 4) for name, value in found.items()}


def info(metric: str) -> MetricInfo:
    """What a metric is."""
    return metric_table()[metric].info


def has_weights() -> bool:
    """Whether LPIPS or FID can be measured here."""
    files = installed_files(None, None)
    return bool(files.lpips_alex or files.inception)


def measure_perceptual(
    cascade: Path, dataset: str, keys: tuple[str, ...], subjects: Sequence[str]
) -> dict[str, Perceptual]:
    """Restore in mode `fast` as `diffbfr evaluate` does, and score; empty without weights."""
    if not has_weights() or len(keys) < 2:
        return {}
    with tempfile.TemporaryDirectory() as folder, Cluster(ClusterConfig(num_workers=0)) as cluster:
        scored = score_cascade(cascade, dataset, keys, (0,), Path(folder), cluster, subjects, METRICS)
    return {subject: read_perceptual(scores[0]) for subject, scores in scored.items()}


def read_perceptual(scores: PairScores) -> Perceptual:
    """LPIPS and FID from scores."""
    lpips, fid = scores.line("lpips_alex"), scores.line("fid")
    values = None
    if lpips is not None and lpips.interval is not None:
        values = dict(zip(scores.keys, scores.rows["lpips_alex"], strict=True))
    return Perceptual(values, None if fid is None else fid.value)
