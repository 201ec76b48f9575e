"""What the paper concludes from Tables 2, 3 and 4, and whether the figures here agree.

A claim about a metric is a number a seed that is negative where the claim is true. Its mean over seeds, with
an interval by Student's t, gives the verdict: the whole interval below zero, the whole above, or neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from pipelines.experiments.paper.arms import IRM_C, IRM_C_T, IRM_S, TABLES, TEM_W, Arm
from pipelines.experiments.paper.numbers import METRICS, paper_value
from pipelines.experiments.paper.scoring import Scored, Values
from pipelines.experiments.spread import Spread, spread

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]
HIGHER_IS_BETTER: Final = ("ssim", "psnr")


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper about some metrics; `statistic` gives a seed's number for one of them."""

    text: str
    metrics: tuple[str, ...]
    statistic: Callable[[Values, str], float]


@dataclass(frozen=True)
class Finding:
    """A claim about one metric: the number over seeds, and the verdict."""

    claim: str
    metric: str
    verdict: Verdict
    spread: Spread | None
    paper: float


def _worse_by(better: Arm, worse: Arm) -> Callable[[Values, str], float]:
    """How much worse the arm is that should be better; the metric's own unit."""

    def statistic(values: Values, metric: str) -> float:
        change = values[better.name][metric] - values[worse.name][metric]
        return -change if metric in HIGHER_IS_BETTER else change

    return statistic


def _largest_rise(arms: Sequence[Arm]) -> Callable[[Values, str], float]:
    """The largest rise of the metric from an arm to the next: negative if it falls everywhere."""

    def statistic(values: Values, metric: str) -> float:
        series = [values[arm.name][metric] for arm in arms]
        return max(after - before for before, after in pairwise(series))

    return statistic


def _range_over_papers(arms: Sequence[Arm]) -> Callable[[Values, str], float]:
    """The range over the arms, less the paper's; of FID, NIQE and LPIPS in percent of the mean."""

    def statistic(values: Values, metric: str) -> float:
        ours = _range([values[arm.name][metric] for arm in arms], metric)
        return ours - _range([_papers(arm, metric) for arm in arms], metric)

    return statistic


def _papers(arm: Arm, metric: str) -> float:
    value = paper_value(arm.name, metric)
    assert value is not None
    return value


def _range(series: Sequence[float], metric: str) -> float:
    width = max(series) - min(series)
    return 100 * width / (sum(series) / len(series)) if metric in ("fid", "niqe", "lpips_alex") else width


CLAIMS: Final = {
    "2": (
        Claim(
            "a cascade is better than one stage (IRM-c over IRM-s)",
            ("ssim", "fid", "niqe", "lpips_alex"),
            _worse_by(IRM_C, IRM_S),
        ),
        Claim(
            "truncated sampling is better than full (IRM-c-t over IRM-c)",
            METRICS,
            _worse_by(IRM_C_T, IRM_C),
        ),
        Claim(
            "TEM lowers FID and LPIPS (TEM-w under IRM-c-t)", ("fid", "lpips_alex"), _worse_by(TEM_W, IRM_C_T)
        ),
    ),
    "3": (Claim("SSIM and PSNR fall as N1 grows", ("ssim", "psnr"), _largest_rise(TABLES["3"])),),
    "4": (
        Claim(
            "the scores are flat in N2, within the paper's own range",
            ("ssim", "psnr", "fid", "lpips_alex"),
            _range_over_papers(TABLES["4"]),
        ),
    ),
}
"""Table -> its claims. Those about a metric are the ones that the paper's own figures support."""


def judge(table: str, scored: Scored) -> list[Finding]:
    """Every claim of a table, metric by metric."""
    paper = {arm: dict(zip(METRICS, map(_plain, _row(arm)), strict=True)) for arm in _names(table)}
    findings = []
    for claim in CLAIMS[table]:
        for metric in claim.metrics:
            numbers = [
                claim.statistic(values, metric) for values in scored.values if _has(values, metric, table)
            ]
            found = spread(numbers) if numbers else None
            verdict = "not measured" if found is None else _verdict(found)
            findings.append(Finding(claim.text, metric, verdict, found, claim.statistic(paper, metric)))
    return findings


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict of a claim over the metrics that were measured: all hold, one does not, or undecided."""
    measured = [finding.verdict for finding in findings if finding.verdict != "not measured"]
    if not measured:
        return "not measured"
    if "does not hold" in measured:
        return "does not hold"
    return "undecided" if "undecided" in measured else "holds"


def _verdict(found: Spread) -> Verdict:
    if not math.isfinite(found.half_width):
        return "undecided"
    if found.high < 0:
        return "holds"
    return "does not hold" if found.low > 0 else "undecided"


def _has(values: Values, metric: str, table: str) -> bool:
    return all(metric in values[name] for name in _names(table))


def _names(table: str) -> list[str]:
    return [arm.name for arm in TABLES[table]]  # type: ignore[index]


def _row(arm: str) -> list[float | None]:
    return [paper_value(arm, metric) for metric in METRICS]


def _plain(value: float | None) -> float:
    assert value is not None
    return value
