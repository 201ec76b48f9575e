"""Starts scale as `stages.py` says, and a verdict follows from the figures: the paper's own, turned, or few."""

import json
from collections.abc import Mapping
from itertools import chain

import pytest

from diffbfr.errors import UsageError
from diffbfr.schedule import noise_schedule
from diffbfr.stages import SR3_SCHEDULE, TEM_SCHEDULE
from pipelines.experiments import paper_tables
from pipelines.experiments.paper.arms import TABLES, arms_of, scaled_start
from pipelines.experiments.paper.claims import CLAIMS, judge, overall
from pipelines.experiments.paper.numbers import METRICS, N1S, N2S, PAPER, paper_value
from pipelines.experiments.paper.restoring import Sampling
from pipelines.experiments.paper.scoring import Scored
from pipelines.experiments.paper.trainings import Plan, cascade_recipe, one_stage_spec, recipe_of
from pipelines.experiments.spread import parse_seeds, spread

JITTER = (0.9999, 1.0, 1.0001)


def scored(values: Mapping[str, tuple[float, ...]], factors: tuple[float, ...] = JITTER) -> Scored:
    """Scores of as many seeds, each the values times a factor close to one."""

    def of_seed(factor: float) -> dict[str, dict[str, float]]:
        named = {arm: dict(zip(METRICS, row, strict=True)) for arm, row in values.items()}
        return {arm: {name: value * factor for name, value in row.items()} for arm, row in named.items()}

    return Scored(tuple(range(len(factors))), tuple(map(of_seed, factors)), {}, 3000, "paper v1")


def turned(table: str) -> dict[str, tuple[float, ...]]:
    """The paper's figures with the rows in the opposite order."""
    names = [arm.name for arm in arms_of(table) if not arm.is_input]
    rows = dict(zip(names, [PAPER[name] for name in reversed(names)], strict=True))
    return {**PAPER, **rows}


def test_a_start_hides_as_much_at_any_size() -> None:
    assert [scaled_start(TEM_SCHEDULE, n2, 512) for n2 in N2S] == list(N2S)
    assert [scaled_start(SR3_SCHEDULE, n1, 512) for n1 in N1S] == list(N1S)
    assert scaled_start(TEM_SCHEDULE, 100, 128) == 23  # as `diffbfr.stages` says
    table = noise_schedule(SR3_SCHEDULE)
    for n1 in N1S:
        here = scaled_start(SR3_SCHEDULE, n1, 128)
        ratios = [((1 - table.gamma[t]) / table.gamma[t]).sqrt() for t in (n1, here)]
        assert float(ratios[1]) == pytest.approx(float(ratios[0]) / 4, rel=0.02)


@pytest.mark.parametrize("table", ["2", "3"])
def test_the_papers_own_figures_hold_and_turned_ones_do_not(table: str) -> None:
    findings = judge(table, scored(PAPER))
    assert {finding.verdict for finding in findings} == {"holds"}
    assert all(finding.spread and finding.spread.mean < 0 and finding.paper < 0 for finding in findings)
    against = judge(table, scored(turned(table)))
    if table == "2":  # turned, the cascade of Table 2 stands in the place of its truncated form
        assert {f.verdict for f in against if "truncated" in f.claim} == {"does not hold"}
    else:
        assert {f.verdict for f in against} == {"does not hold"}


def test_flat_is_within_the_papers_own_range() -> None:
    names = [arm.name for arm in TABLES["4"]]
    flat = {
        **PAPER,
        **{name: tuple(value + 1e-5 * i for value in PAPER["n2-100"]) for i, name in enumerate(names)},
    }
    assert overall(judge("4", scored(flat))) == "holds"
    steep = {
        **PAPER,
        **{name: tuple(value * (1 + 0.1 * i) for value in PAPER["n2-100"]) for i, name in enumerate(names)},
    }
    assert {finding.verdict for finding in judge("4", scored(steep))} == {"does not hold"}


def test_few_or_scattered_seeds_decide_nothing() -> None:
    one = judge("3", scored(PAPER, (1.0,)))
    assert {finding.verdict for finding in one} == {"undecided"}
    assert overall(one) == "undecided"
    noisy = [
        {arm: dict(zip(METRICS, PAPER[arm], strict=True)) for arm in PAPER},
        {arm: dict(zip(METRICS, turned("3")[arm], strict=True)) for arm in PAPER},
    ]
    both = judge("3", Scored((0, 1), tuple(noisy), {}, 3000, ""))
    assert {finding.verdict for finding in both} == {"undecided"}


def test_a_metric_that_was_not_measured_decides_nothing() -> None:
    found = scored(PAPER)
    values = json.loads(json.dumps(found.values))
    for row in chain.from_iterable(seed.values() for seed in values):
        del row["niqe"]
    findings = judge("2", Scored(found.seeds, tuple(values), {"niqe": "too small"}, 3000, ""))
    assert {f.verdict for f in findings if f.metric == "niqe"} == {"not measured"}
    assert {overall([f for f in findings if f.claim == claim.text]) for claim in CLAIMS["2"]} == {"holds"}
    assert overall([f for f in findings if f.metric == "niqe"]) == "not measured"


def test_every_arm_has_the_papers_figures() -> None:
    for arms in TABLES.values():
        for arm in arms:
            assert [paper_value(arm.name, metric) for metric in METRICS] == list(PAPER[arm.name])
    assert paper_value("irm-s", "kid") is None


def test_the_spread_of_three_is_students() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.lowest, found.highest) == (2.0, 1.0, 3.0)
    assert found.half_width == pytest.approx(4.303 / 3**0.5)
    assert spread([5.0]).half_width == float("inf")
    with pytest.raises(UsageError, match="found 0 seeds; expected 1 to 10"):
        spread([])


@pytest.mark.parametrize("text", ["", "0,0", "a", "-1", "0,,1", "0,1,2,3,4,5,6,7,8,9,10"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 10 different whole numbers"):
        parse_seeds(text)


def test_one_recipe_serves_every_start() -> None:
    plan = Plan(recipe_of(64, "synthetic:count=9,px=64"), "root", 800, (0, 1))
    recipe = cascade_recipe(plan, 1)
    assert (recipe.data.lq_px, recipe.irm1.stage.px, recipe.irm2.stage.px, recipe.tem.stage.px) == (
        16,
        16,
        64,
        64,
    )
    assert (recipe.irm2.training.t_max, recipe.irm2.training.seed) == (None, 1)
    largest = max(scaled_start(TEM_SCHEDULE, n2, 64) for n2 in N2S)
    assert recipe.tem.training.t_max is not None
    assert recipe.tem.training.t_max >= largest
    assert [recipe.stage(name).training.num_samples for name in ("irm1", "irm2", "tem")] == [800, 800, 400]
    single = one_stage_spec(recipe)
    assert (single.name, single.start, single.unet) == ("irm1", 2000, recipe.irm2.stage.unet)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe_of(100, "x"), "found 100 px; expected one of 32, 64, 128, 256"),
        (lambda: Plan(recipe_of(64, "x"), "root", 1, (0,)), "found 1 training samples; expected at least 2"),
        (lambda: paper_tables.parse_hold_out("val.zip"), "expected NAME=FACES"),
        (lambda: paper_tables.parse_hold_out("../x=val.zip"), "expected NAME=FACES"),
        (lambda: arms_of("5"), "found table '5'; expected 2, 3, 4"),
        (lambda: Sampling(evaluations=0), "found 0 evaluations"),
        (lambda: Sampling("faithful", end=1.6), "mode faithful, which has none; leave --end out"),
    ],
)
def test_other_requests_are_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]
