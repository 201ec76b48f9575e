"""Evaluations with scores of our choice, and versions that have them on the hold-out."""

from diffbfr.errors import DiffBFRError
from diffbfr.metrics import psnr, squeezenet, ssim
from diffbfr.metrics.intervals import Interval
from pipelines.evaluation.scores import Evaluation, Protocol, SubjectScores
from pipelines.evaluation.types import SUBJECTS, Row
from pipelines.registry import ModelVersion, freeze_holdout, get_version, holdout_of, record_evaluation
from pipelines.tracking.connection import Registry

CARDS = (psnr.INFO, ssim.INFO, squeezenet.INFO)


def evaluation(values: tuple[float, ...], dataset: str = "one") -> Evaluation:
    """Ten faces, each with the same scores."""
    cards = CARDS[: len(values)]
    protocol = Protocol(
        dataset,
        "test",
        10,
        0,
        (0,),
        "fast",
        128,
        "k" * 64,
        tuple(f"{card.name} v{card.version}" for card in cards),
    )
    table = tuple(
        SubjectScores(subject, tuple(Interval(value, value, value, 10) for value in values))
        for subject in SUBJECTS
    )
    rows = tuple(Row(f"face-{i}", subject, 0, values) for i in range(10) for subject in SUBJECTS)
    return Evaluation(protocol, cards, table, rows, ())


def measured(registry: Registry, version: ModelVersion, *values: float, dataset: str = "one") -> ModelVersion:
    """Give a version scores; the first that are given make the hold-out."""
    scores = evaluation(values, dataset)
    record_evaluation(registry, version, scores)
    freeze_holdout(registry, holdout_of(scores, "/data"), "the first evaluation", first_only=True)
    return get_version(registry, version.ref)


def aliases(registry: Registry) -> dict[str, int]:
    """Alias -> version of the cascade."""
    found = {}
    for alias in ("candidate", "champion", "previous"):
        try:
            found[alias] = get_version(registry, f"diffbfr-cascade@{alias}").version
        except DiffBFRError:
            continue
    return found
