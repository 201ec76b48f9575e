"""Compare two evaluations of the same pictures by a paired test; refuse what cannot be compared."""

from dataclasses import dataclass

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.paired import PairedDifference, paired_difference
from diffbfr.text import format_columns
from pipelines.evaluation.pair_scores import MetricLine, PairScores


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of both evaluations; `test` is None where there is one value for all pictures."""

    key: str
    info: MetricInfo
    first: float
    second: float
    test: PairedDifference | None


@dataclass(frozen=True)
class Comparison:
    """Two methods under one card, and the metrics that both have."""

    first: str
    second: str
    card: str
    num_pairs: int
    metrics: tuple[ComparedMetric, ...]


def compare(first: PairScores, second: PairScores) -> Comparison:
    """Test each metric of both on the pairs of their values; UsageError if anything else differs."""
    _check_comparable(first, second)
    compared = []
    for line in first.lines:
        other = second.line(line.key)
        if other is None or line.value is None or other.value is None:
            continue
        _check_same_metric(first, second, line, other)
        test = None
        if line.interval is not None:
            test = paired_difference(first.rows[line.key], second.rows[line.key])
        compared.append(ComparedMetric(line.key, line.info, line.value, other.value, test))
    if not compared:
        raise UsageError("the two evaluations share no metric; expected at least one; evaluate both again")
    return Comparison(
        first.data.restored,
        second.data.restored,
        f"{first.card.name} v{first.card.version} ({first.card.digest})",
        first.data.num_pairs,
        tuple(compared),
    )


def format_comparison(comparison: Comparison) -> str:
    """The comparison as a table and a line that says what it is."""
    head = ("metric", "", "A", "B", "B - A [95 % interval]", "p")
    body = []
    for metric in comparison.metrics:
        values = (f"{metric.first:.4g}", f"{metric.second:.4g}")
        arrow = "↑" if metric.info.better == "higher" else "↓"
        if metric.test is None:
            body.append((metric.info.label, arrow, *values, f"{metric.second - metric.first:+.4g}", "-"))
            continue
        found = metric.test.difference
        change = f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"
        body.append((metric.info.label, arrow, *values, change, f"{metric.test.p_value:.2g}"))
    note = (
        f"A is {comparison.first}, B is {comparison.second}; card {comparison.card}, {comparison.num_pairs} "
        "pairs; p: two-sided randomisation test of the paired differences, for each metric alone"
    )
    return "\n".join([format_columns([head, *body]), "", note])


def _check_comparable(first: PairScores, second: PairScores) -> None:
    if first.card.digest != second.card.digest:
        raise UsageError(
            f"the cards are {first.card.name} v{first.card.version} ({first.card.digest}) and "
            f"{second.card.name} v{second.card.version} ({second.card.digest}); figures of different cards "
            "cannot be compared; evaluate both with one --protocol"
        )
    if odd := sorted(set(first.keys) ^ set(second.keys)):
        raise UsageError(
            f"{len(odd)} pictures are in one evaluation only, the first is {odd[0]}; expected the same "
            "pictures; evaluate both on the same"
        )
    if first.keys != second.keys or first.data.keys_sha256 != second.data.keys_sha256:
        raise UsageError("the rows of the evaluations differ in their order; expected one; evaluate again")
    sizes = [(scores.data.width, scores.data.height) for scores in (first, second)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the pictures are {sizes[0][0]} x {sizes[0][1]} and {sizes[1][0]} x {sizes[1][1]}; expected "
            "one size; evaluate both at the same"
        )


def _check_same_metric(first: PairScores, second: PairScores, line: MetricLine, other: MetricLine) -> None:
    if line.info != other.info or first.weights.get(line.key) != second.weights.get(line.key):
        raise UsageError(
            f"{line.info.name} was measured in two ways (v{line.info.version} and v{other.info.version}, or "
            "other weights); expected one; evaluate both with one installation"
        )
