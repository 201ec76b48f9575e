"""Score folders of pictures by the product's own evaluator; what was scored before is read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from diffbfr.images import Pixels, encode_png
from diffbfr.metrics.cards import FFHQ_HOLDOUT
from diffbfr.metrics.frechet import FID_EMBEDDING, to_npz
from diffbfr.metrics.intervals import Interval, bootstrap
from pipelines import storage
from pipelines.evaluation.pair_scores import SCORES, PairScores, read_pair_scores
from pipelines.flows.evaluate_pairs import PairRequest, evaluate_pairs

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

STATISTICS: Final = "reference.npz"


def write_pictures(folder: Path, pictures: Mapping[str, Pixels]) -> None:
    """Write pictures as PNG by key."""
    for key, pixels in pictures.items():
        storage.write_atomic(str(folder / f"{key}.png"), encode_png(pixels))


def score_folder(
    restored: Path, reference: Path, out: Path, cluster: "Cluster", metrics: tuple[str, ...]
) -> PairScores:
    """Score a folder under the card ffhq-holdout.

    The statistics of the references are made by the first call and kept beside them.
    """
    if (out / SCORES).is_file():
        return read_pair_scores(str(out))
    statistics = reference.with_name(STATISTICS)
    request = PairRequest(
        restored=str(restored),
        reference=str(reference),
        card=FFHQ_HOLDOUT,
        metrics=metrics,
        statistics=str(statistics) if statistics.is_file() else "",
        allow_few=True,
    )
    report = evaluate_pairs(request, str(out), cluster)
    if FID_EMBEDDING in report.references and not statistics.is_file():
        storage.write_atomic(str(statistics), to_npz(report.references[FID_EMBEDDING]))
    return report.scores


def over_seeds(scores: Sequence[PairScores], metric: str) -> Interval | float | None:
    """A metric over several restorations of the same faces; None if it was not measured.

    Of single pictures: the mean over faces with its interval, each face averaged over its restorations first.
    Of all pictures: the mean of the values.
    """
    lines = [line for found in scores if (line := found.line(metric)) is not None]
    if not lines or any(line.unavailable for line in lines):
        return None
    if lines[0].interval is None:
        return math.fsum(line.value or 0.0 for line in lines) / len(lines)
    columns = [found.rows[metric] for found in scores]
    return bootstrap([math.fsum(face) / len(face) for face in zip(*columns, strict=True)])
