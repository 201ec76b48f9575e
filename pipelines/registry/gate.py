"""The gate between candidate and champion: a cascade takes charge only where it is not worse on the same held-out faces.

Not worse means: the 95 % interval of the paired difference, face by face, stays within a metric's margin (a test of non-inferiority).
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from diffbfr.errors import DiffBFRError, QuarantineError
from diffbfr.metrics.intervals import bootstrap
from pipelines.registry.actions import record_action
from pipelines.registry.connection import Registry
from pipelines.registry.runs import Run
from pipelines.registry.turns import turn
from pipelines.registry.versions import CASCADE, ModelVersion, get_version, list_versions
from pipelines.steps.scores import Evaluation, faces, means, metric_slug

FaceScores = Mapping[str, Mapping[str, float]]
"""Metric -> face -> score."""
_SUBJECT: Final = "tem"
_PROTOCOL_TAG: Final = "eval.protocol"


@dataclass(frozen=True)
class Margin:
    """How much worse a metric may get before the gate closes."""

    metric: str
    better: Literal["higher", "lower"]
    allowed: float


MARGINS: Final = (
    Margin("psnr", "higher", 0.1),
    Margin("ssim", "higher", 0.005),
    Margin("squeezenet_distance", "lower", 0.01),
    Margin("identity_cosine", "higher", 0.01),
)


@dataclass(frozen=True)
class Comparison:
    """One metric of candidate and champion, means over the same faces; `loss` > 0 is worse, whichever way the metric points.

    `at_most` is the upper end of the 95 % interval of the paired loss (bootstrap over faces).
    """

    metric: str
    champion: float
    candidate: float
    loss: float
    at_most: float
    allowed: float

    @property
    def regressed(self) -> bool:
        """Whether the candidate may be worse by more than the margin."""
        return not self.at_most <= self.allowed  # NaN is a regression too


class RegressionError(QuarantineError):
    """A candidate may be worse than the champion by more than a margin; `comparisons` is the table."""

    def __init__(self, message: str, comparisons: tuple[Comparison, ...]) -> None:
        super().__init__(message)
        self.comparisons = comparisons


@dataclass(frozen=True)
class Promotion:
    """What `promote` did: the new champion, the version it replaced (None at first), and the comparison it rests on."""

    champion: ModelVersion
    previous: ModelVersion | None
    comparisons: tuple[Comparison, ...]


def record_evaluation(registry: Registry, version: ModelVersion, evaluation: Evaluation) -> None:
    """Write an evaluation's means and its protocol on the version, and the scores of every face into its run: what the gate compares."""
    Run(registry, version.run_id).log_bytes(_faces_path(version, evaluation.protocol.digest), _faces_csv(evaluation))
    for name, value in evaluation_tags(evaluation).items():
        registry.client.set_model_version_tag(version.name, str(version.version), name, value)


def evaluation_tags(evaluation: Evaluation) -> dict[str, str]:
    """Means, versions of the metrics and the protocol, as tags of a version."""
    tags = {f"eval.{name}": repr(value) for name, value in means(evaluation).items()}
    tags |= {f"eval.version.{metric_slug(card)}": card.version for card in evaluation.cards}
    return tags | {_PROTOCOL_TAG: evaluation.protocol.digest}


def promote(registry: Registry, ref: str = f"{CASCADE}@candidate", force: bool = False, why: str = "") -> Promotion:
    """Make a version the champion and the champion `previous`; a regression beyond the margins is refused, unless forced.

    Of many who promote the candidate at once, one does. Running it again after a crash between the alias moves finishes the job.
    """
    with turn(registry, ref.partition("@")[0]):
        version = get_version(registry, ref)
        champion = _holder(registry, version.name, "champion")
        comparisons: tuple[Comparison, ...] = ()
        if champion is not None and champion.version != version.version:
            if not force:
                comparisons = compare(champion, version, partial(_read_faces, registry))
            _move(registry, version.name, "previous", champion)
        elif not force and _PROTOCOL_TAG not in version.tags:
            raise DiffBFRError(f"{version.ref} was never evaluated; expected scores on held-out faces; run `diffbfr run`, or force it")
        _move(registry, version.name, "champion", version)
        if "candidate" in version.aliases:
            registry.client.delete_registered_model_alias(version.name, "candidate")
        reason = why or ("forced" if force else "no worse on the same faces" if comparisons else "the first champion")
        before = champion.ref if champion else ""
        record_action(registry, "promote --force" if force else "promote", version.name, before, version.ref, reason)
        previous = _holder(registry, version.name, "previous")
        return Promotion(get_version(registry, version.ref), previous, comparisons)


def rollback(registry: Registry, name: str = CASCADE, why: str = "") -> Promotion:
    """Put `previous` back in charge; the version that was champion becomes `previous`, so a second rollback undoes the first."""
    with turn(registry, name):
        champion, previous = _holder(registry, name, "champion"), _holder(registry, name, "previous")
        if previous is None or champion is None or previous.version == champion.version:
            raise DiffBFRError(f"{name} has no previous champion; expected a promotion before a rollback; see `diffbfr models list`")
        _move(registry, name, "champion", previous)
        _move(registry, name, "previous", champion)
        record_action(registry, "rollback", name, champion.ref, previous.ref, why)
        return Promotion(get_version(registry, previous.ref), get_version(registry, champion.ref), ())


def compare(champion: ModelVersion, candidate: ModelVersion, faces_of: Callable[[ModelVersion], FaceScores]) -> tuple[Comparison, ...]:
    """Compare two versions on the metrics that both have; RegressionError if the candidate may be worse.

    DiffBFRError if they cannot be compared.
    """
    protocols = champion.tags.get(_PROTOCOL_TAG), candidate.tags.get(_PROTOCOL_TAG)
    if None in protocols or protocols[0] != protocols[1]:
        raise DiffBFRError(
            f"{candidate.ref} was measured by protocol {protocols[1]}, the champion {champion.ref} by {protocols[0]}; "
            "expected the same held-out faces; evaluate both on one dataset, or force it"
        )
    shared = [margin for margin in MARGINS if _comparable(margin.metric, champion, candidate)]
    old, new = faces_of(champion), faces_of(candidate)
    comparisons = tuple(_compare(margin, old[margin.metric], new[margin.metric]) for margin in shared)
    if not comparisons:
        raise DiffBFRError(f"{candidate.ref} and {champion.ref} share no metric; expected at least PSNR; evaluate both again, or force it")
    worse = [comparison.metric for comparison in comparisons if comparison.regressed]
    if worse:
        raise RegressionError(
            f"{candidate.ref} may be worse than the champion {champion.ref} in {', '.join(worse)}; expected losses within the margins; "
            "keep the champion, or force it",
            comparisons,
        )
    return comparisons


def format_comparisons(comparisons: tuple[Comparison, ...]) -> str:
    """The comparison as a text table, means of TEM over the same faces."""
    head = f"{'metric (TEM)':<22}{'champion':>10}{'candidate':>11}{'worse by':>10}{'at most':>9}{'allowed':>9}"
    rows = [
        f"{c.metric:<22}{c.champion:>10.4f}{c.candidate:>11.4f}{c.loss:>10.4f}{c.at_most:>9.4f}{c.allowed:>9.4f}"
        f"{'  <- too much' if c.regressed else ''}"
        for c in comparisons
    ]
    return "\n".join([head, *rows])


def _comparable(metric: str, champion: ModelVersion, candidate: ModelVersion) -> bool:
    versions = {version.tags.get(f"eval.version.{metric}") for version in (champion, candidate)}
    return len(versions) == 1 and None not in versions


def _compare(margin: Margin, champion: Mapping[str, float], candidate: Mapping[str, float]) -> Comparison:
    """Pair two tables of face -> score."""
    sign = 1.0 if margin.better == "higher" else -1.0
    losses = [0.0 if champion[key] == candidate[key] else sign * (champion[key] - candidate[key]) for key in sorted(champion)]
    loss = bootstrap(losses)
    old, new = (sum(scores.values()) / len(scores) for scores in (champion, candidate))
    return Comparison(margin.metric, old, new, loss.mean, loss.high, margin.allowed)


def _faces_path(version: ModelVersion, protocol: str) -> str:
    return f"evaluation/{protocol}/{version.name}-{version.version}.csv"


def _faces_csv(evaluation: Evaluation) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", *(metric_slug(card) for card in evaluation.cards)])
    writer.writerows([key, *map(repr, values)] for key, values in faces(evaluation, _SUBJECT).items())
    return text.getvalue().encode()


def _read_faces(registry: Registry, version: ModelVersion) -> FaceScores:
    """What `record_evaluation` wrote."""
    path = _faces_path(version, version.tags[_PROTOCOL_TAG])
    rows = list(csv.DictReader(io.StringIO(Run(registry, version.run_id).read_bytes(path).decode())))
    return {metric: {row["key"]: float(row[metric]) for row in rows} for metric in rows[0] if metric != "key"}


def _holder(registry: Registry, name: str, alias: str) -> ModelVersion | None:
    return next((version for version in list_versions(registry, name) if alias in version.aliases), None)


def _move(registry: Registry, name: str, alias: str, version: ModelVersion) -> None:
    registry.client.set_registered_model_alias(name, alias, str(version.version))
