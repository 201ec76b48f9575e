"""The gate between candidate and champion: a cascade takes charge only where it is not worse on the same held-out faces."""

from dataclasses import dataclass
from typing import Final, Literal

from diffbfr.errors import DiffBFRError
from pipelines.registry.connection import Registry
from pipelines.registry.versions import CASCADE, ModelVersion, get_version, list_versions
from pipelines.steps.scores import Evaluation, means, metric_slug

_SUBJECT: Final = "tem"
_PROTOCOL_TAG: Final = "eval.protocol"


@dataclass(frozen=True)
class Margin:
    """How much worse a mean may get before the gate closes."""

    metric: str
    better: Literal["higher", "lower"]
    allowed: float


MARGINS: Final = (Margin("psnr", "higher", 0.1), Margin("ssim", "higher", 0.005), Margin("squeezenet_distance", "lower", 0.01))


@dataclass(frozen=True)
class Comparison:
    """One metric of candidate and champion, means over the same faces; `loss` > 0 is worse, whichever way the metric points."""

    metric: str
    champion: float
    candidate: float
    loss: float
    allowed: float

    @property
    def regressed(self) -> bool:
        """Whether the candidate is worse by more than the margin."""
        return not self.loss <= self.allowed  # NaN is a regression too


@dataclass(frozen=True)
class Promotion:
    """What `promote` did: the new champion, the version it replaced (None at first), and the comparison it rests on."""

    champion: ModelVersion
    previous: ModelVersion | None
    comparisons: tuple[Comparison, ...]


def record_evaluation(registry: Registry, version: ModelVersion, evaluation: Evaluation) -> None:
    """Write an evaluation's means and its protocol on the version: what the gate compares."""
    for name, value in evaluation_tags(evaluation).items():
        registry.client.set_model_version_tag(version.name, str(version.version), name, value)


def evaluation_tags(evaluation: Evaluation) -> dict[str, str]:
    """Means, versions of the metrics and the protocol, as tags of a version."""
    tags = {f"eval.{name}": repr(value) for name, value in means(evaluation).items()}
    tags |= {f"eval.version.{metric_slug(card)}": card.version for card in evaluation.cards}
    return tags | {_PROTOCOL_TAG: evaluation.protocol.digest}


def promote(registry: Registry, ref: str = f"{CASCADE}@candidate", force: bool = False) -> Promotion:
    """Make a version the champion and the champion `previous`; a regression beyond the margins is refused, unless forced.

    Running it again after a crash between the alias moves finishes the job.
    """
    version = get_version(registry, ref)
    champion = _holder(registry, version.name, "champion")
    comparisons: tuple[Comparison, ...] = ()
    if champion is not None and champion.version != version.version:
        if not force:
            comparisons = compare(champion, version)
        _move(registry, version.name, "previous", champion)
    elif not force and _PROTOCOL_TAG not in version.tags:
        raise DiffBFRError(f"{version.ref} was never evaluated; expected scores on held-out faces; run `diffbfr evaluate`, or force it")
    _move(registry, version.name, "champion", version)
    if "candidate" in version.aliases:
        registry.client.delete_registered_model_alias(version.name, "candidate")
    previous = _holder(registry, version.name, "previous")
    return Promotion(get_version(registry, version.ref), previous, comparisons)


def rollback(registry: Registry, name: str = CASCADE) -> Promotion:
    """Put `previous` back in charge; the version that was champion becomes `previous`, so a second rollback undoes the first."""
    champion, previous = _holder(registry, name, "champion"), _holder(registry, name, "previous")
    if previous is None or champion is None or previous.version == champion.version:
        raise DiffBFRError(f"{name} has no previous champion; expected a promotion before a rollback; see `diffbfr models list`")
    _move(registry, name, "champion", previous)
    _move(registry, name, "previous", champion)
    return Promotion(get_version(registry, previous.ref), get_version(registry, champion.ref), ())


def compare(champion: ModelVersion, candidate: ModelVersion) -> tuple[Comparison, ...]:
    """Compare two versions on the metrics that both have; DiffBFRError with the table if the candidate is worse or not comparable."""
    protocols = champion.tags.get(_PROTOCOL_TAG), candidate.tags.get(_PROTOCOL_TAG)
    if None in protocols or protocols[0] != protocols[1]:
        raise DiffBFRError(
            f"{candidate.ref} was measured by protocol {protocols[1]}, the champion {champion.ref} by {protocols[0]}; "
            "expected the same held-out faces; evaluate both on one dataset, or force it"
        )
    comparisons = tuple(_compare(margin, champion, candidate) for margin in MARGINS if _comparable(margin.metric, champion, candidate))
    if not comparisons:
        raise DiffBFRError(f"{candidate.ref} and {champion.ref} share no metric; expected at least PSNR; evaluate both again, or force it")
    worse = [comparison.metric for comparison in comparisons if comparison.regressed]
    if worse:
        raise DiffBFRError(
            f"{candidate.ref} is worse than the champion {champion.ref} in {', '.join(worse)}; expected losses within the margins; "
            f"keep the champion, or force it\n{format_comparisons(comparisons)}"
        )
    return comparisons


def format_comparisons(comparisons: tuple[Comparison, ...]) -> str:
    """The comparison as a text table, means of TEM over the same faces."""
    head = f"{'metric (TEM)':<22}{'champion':>10}{'candidate':>11}{'worse by':>10}{'allowed':>9}"
    rows = [
        f"{c.metric:<22}{c.champion:>10.4f}{c.candidate:>11.4f}{max(c.loss, 0):>10.4f}{c.allowed:>9.4f}"
        f"{'  <- too much' if c.regressed else ''}"
        for c in comparisons
    ]
    return "\n".join([head, *rows])


def _comparable(metric: str, champion: ModelVersion, candidate: ModelVersion) -> bool:
    versions = {version.tags.get(f"eval.version.{metric}") for version in (champion, candidate)}
    return len(versions) == 1 and None not in versions


def _compare(margin: Margin, champion: ModelVersion, candidate: ModelVersion) -> Comparison:
    old, new = (float(version.tags[f"eval.{_SUBJECT}.{margin.metric}"]) for version in (champion, candidate))
    loss = 0.0 if old == new else old - new if margin.better == "higher" else new - old
    return Comparison(margin.metric, old, new, loss, margin.allowed)


def _holder(registry: Registry, name: str, alias: str) -> ModelVersion | None:
    return next((version for version in list_versions(registry, name) if alias in version.aliases), None)


def _move(registry: Registry, name: str, alias: str, version: ModelVersion) -> None:
    registry.client.set_registered_model_alias(name, alias, str(version.version))
