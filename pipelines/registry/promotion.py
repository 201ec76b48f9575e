"""The promotion rule: a candidate becomes champion only if it is not worse on the same held-out faces.

The rule is a non-inferiority test: for every metric the upper end of the 95 % interval of the paired loss,
face by face, must be within the metric's margin.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from diffbfr.errors import DiffBFRError, QuarantineError
from diffbfr.metrics.intervals import bootstrap
from diffbfr.text import format_columns
from pipelines.registry.aliases import locked_model, move_aliases
from pipelines.registry.evaluations import FaceScores, is_measured, read_faces, recorded_metrics
from pipelines.registry.holdout import HoldOut, read_holdout
from pipelines.registry.versions import CASCADE, ModelVersion, get_version, version_with_alias
from pipelines.tracking.connection import Registry


@dataclass(frozen=True)
class Margin:
    """How much worse a metric may become, in the metric's own unit."""

    metric: str
    better: Literal["higher", "lower"]
    allowed: float


MARGINS: Final = (
    Margin("psnr", "higher", 0.1),
    Margin("ssim", "higher", 0.005),
    Margin("squeezenet_distance", "lower", 0.01),
    Margin("identity_cosine", "higher", 0.01),
)
_COMMAND: Final = "diffbfr models holdout DATASET"


@dataclass(frozen=True)
class Comparison:
    """Means of one metric over the same faces; `loss` > 0 is worse, whichever direction is better.

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
        # Written as a negation so that NaN is a regression too.
        return not self.at_most <= self.allowed


class RegressionError(QuarantineError):
    """A candidate may be worse than the champion by more than a margin; `comparisons` is the table."""

    def __init__(self, message: str, comparisons: tuple[Comparison, ...]) -> None:
        super().__init__(message)
        self.comparisons = comparisons


@dataclass(frozen=True)
class Promotion:
    """The new champion, the version it replaced (None at first), and the comparison it rests on."""

    champion: ModelVersion
    previous: ModelVersion | None
    comparisons: tuple[Comparison, ...]


def promote(
    registry: Registry, ref: str = f"{CASCADE}@candidate", force: bool = False, why: str = ""
) -> Promotion:
    """Make a version the champion, and the champion `previous`.

    Both must have been evaluated on the hold-out; RegressionError if the candidate may be worse beyond the
    margins. With `force` neither is required. Of many processes that promote the candidate at once, one does;
    the others find no candidate.
    """
    name = ref.partition("@")[0]
    with locked_model(registry, name) as lock:
        version = get_version(registry, ref)
        champion = version_with_alias(registry, name, "champion")
        comparisons = () if force else _judge(registry, version, champion)
        targets = {"champion": str(version.version)}
        if champion is not None and champion.version != version.version:
            targets["previous"] = str(champion.version)
        if "candidate" in version.aliases:
            targets["candidate"] = ""
        reason = why or (
            "forced" if force else "no worse on the same faces" if comparisons else "the first champion"
        )
        action = "promote --force" if force else "promote"
        move_aliases(lock, action, champion.ref if champion else "", version.ref, reason, targets)
        previous = version_with_alias(registry, name, "previous")
        return Promotion(get_version(registry, version.ref), previous, comparisons)


def rollback(registry: Registry, name: str = CASCADE, why: str = "") -> Promotion:
    """Make `previous` the champion, and the champion `previous`: a second rollback undoes the first."""
    with locked_model(registry, name) as lock:
        champion = version_with_alias(registry, name, "champion")
        previous = version_with_alias(registry, name, "previous")
        if previous is None or champion is None or previous.version == champion.version:
            raise DiffBFRError(
                f"{name} has no previous champion; expected a promotion before a rollback; see `diffbfr "
                "models list`"
            )
        targets = {"champion": str(previous.version), "previous": str(champion.version)}
        move_aliases(lock, "rollback", champion.ref, previous.ref, why, targets)
        return Promotion(get_version(registry, previous.ref), get_version(registry, champion.ref), ())


def compare(
    champion: ModelVersion,
    candidate: ModelVersion,
    holdout: HoldOut,
    faces_of: Callable[[ModelVersion], FaceScores],
) -> tuple[Comparison, ...]:
    """Compare two versions on every metric of the hold-out that has a margin.

    RegressionError if the candidate may be worse; DiffBFRError if a version lacks scores by a metric.
    """
    require_measured(champion, holdout)
    require_measured(candidate, holdout)
    old, new = faces_of(champion), faces_of(candidate)
    comparisons = tuple(
        _compare(margin, old[margin.metric], new[margin.metric])
        for margin in MARGINS
        if margin.metric in holdout.metrics
    )
    if not comparisons:
        raise DiffBFRError(
            f"the hold-out has no metric with a margin; expected at least psnr; set another with `{_COMMAND}`"
        )
    worse = [comparison.metric for comparison in comparisons if comparison.regressed]
    if worse:
        raise RegressionError(
            f"{candidate.ref} may be worse than the champion {champion.ref} in {', '.join(worse)}; expected "
            "losses within the margins; "
            "keep the champion, or force it",
            comparisons,
        )
    return comparisons


def require_measured(version: ModelVersion, holdout: HoldOut) -> None:
    """DiffBFRError with every metric of the hold-out by which a version has no scores, if there is one."""
    if is_measured(version, holdout):
        return
    recorded = recorded_metrics(version, holdout.protocol.digest)
    lacking = ", ".join(
        f"{name} v{number}"
        for name, number in sorted(holdout.metrics.items())
        if recorded.get(name) != number
    )
    have = ", ".join(f"{name} v{number}" for name, number in sorted(recorded.items())) or "nothing"
    raise DiffBFRError(
        f"{version.ref} has no {lacking} on the hold-out {holdout.protocol.digest}, it has {have}; expected "
        "every metric of the hold-out; "
        "run `diffbfr models promote`, which measures, or force it"
    )


def format_comparisons(comparisons: tuple[Comparison, ...]) -> str:
    """The comparisons as a text table of means of TEM over the same faces."""
    head = ["metric (TEM)", "champion", "candidate", "worse by", "at most", "allowed", ""]
    rows = [head]
    for it in comparisons:
        values = (it.champion, it.candidate, it.loss, it.at_most, it.allowed)
        numbers = [f"{value:.4f}" for value in values]
        rows.append([it.metric, *numbers, "<- too much" if it.regressed else ""])
    return format_columns(rows, right=(False, *[True] * 5))


def _judge(
    registry: Registry, version: ModelVersion, champion: ModelVersion | None
) -> tuple[Comparison, ...]:
    """Compare a version with the champion; an error if it has no scores or may be worse."""
    if version.name != CASCADE:
        raise DiffBFRError(
            f"{version.ref} is one stage, which is not evaluated alone; expected a cascade; promote "
            f"{CASCADE}, or force it"
        )
    holdout = read_holdout(registry)
    if holdout is None:
        raise DiffBFRError(
            f"there is no hold-out to measure {version.ref} on; expected one; set it with `{_COMMAND}`, or "
            "force it"
        )
    require_measured(version, holdout)
    if champion is None or champion.version == version.version:
        return ()
    return compare(champion, version, holdout, lambda it: read_faces(registry, it, holdout.protocol.digest))


def _compare(margin: Margin, champion: Mapping[str, float], candidate: Mapping[str, float]) -> Comparison:
    """Compare two tables of face -> score, face by face."""
    sign = 1.0 if margin.better == "higher" else -1.0
    if champion.keys() != candidate.keys():
        raise DiffBFRError(
            f"{margin.metric} was measured on {len(champion)} and {len(candidate)} faces; expected the same; "
            "measure both again"
        )
    losses = [
        0.0 if champion[key] == candidate[key] else sign * (champion[key] - candidate[key])
        for key in sorted(champion)
    ]
    loss = bootstrap(losses)
    old, new = (sum(scores.values()) / len(scores) for scores in (champion, candidate))
    return Comparison(margin.metric, old, new, loss.mean, loss.high, margin.allowed)
