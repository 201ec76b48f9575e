import math

import pytest

from diffbfr.errors import DiffBFRError
from diffbfr.metrics import psnr, squeezenet, ssim
from diffbfr.metrics.intervals import Interval
from pipelines.registry import ModelVersion, Registry, get_version, promote, record_evaluation, rollback
from pipelines.registry.gate import compare, evaluation_tags
from pipelines.steps.evaluate import SUBJECTS
from pipelines.steps.scores import Evaluation, Protocol, SubjectScores
from tests.pipelines.registry.conftest import CascadeMaker

CARDS = (psnr.CARD, ssim.CARD, squeezenet.CARD)


def evaluation(values: tuple[float, ...], dataset: str = "one") -> Evaluation:
    cards = CARDS[: len(values)]
    protocol = Protocol(dataset, "test", 10, 0, (0,), "fast", 128, "k" * 64, tuple(card.name for card in cards))
    table = tuple(SubjectScores(subject, tuple(Interval(value, value, value, 10) for value in values)) for subject in SUBJECTS)
    return Evaluation(protocol, cards, table, (), ())


def measured(registry: Registry, version: ModelVersion, *values: float, dataset: str = "one") -> ModelVersion:
    record_evaluation(registry, version, evaluation(values, dataset))
    return get_version(registry, version.ref)


def aliases(registry: Registry) -> dict[str, int]:
    found = {}
    for alias in ("candidate", "champion", "previous"):
        try:
            found[alias] = get_version(registry, f"diffbfr-cascade@{alias}").version
        except DiffBFRError:
            continue
    return found


def test_the_first_evaluated_candidate_becomes_champion(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promotion = promote(registry)
    assert promotion.champion.aliases == ("champion",)
    assert promotion.previous is None
    assert aliases(registry) == {"champion": 1}


def test_an_unmeasured_candidate_is_refused(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    with pytest.raises(DiffBFRError, match="never evaluated"):
        promote(registry)
    assert aliases(registry) == {"candidate": 1}


def test_a_better_candidate_replaces_the_champion_and_rollback_swaps_them(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 22.5, 0.61, 0.28)
    promotion = promote(registry)
    assert [comparison.metric for comparison in promotion.comparisons] == ["psnr", "ssim", "squeezenet_distance"]
    assert promotion.comparisons[0].loss == pytest.approx(-0.5)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    rollback(registry)
    assert aliases(registry) == {"champion": 1, "previous": 2}
    rollback(registry)
    assert aliases(registry) == {"champion": 2, "previous": 1}


def version(number: int, *values: float, dataset: str = "one") -> ModelVersion:
    return ModelVersion("diffbfr-cascade", number, "d", (), "", "", "", evaluation_tags(evaluation(values, dataset)))


def test_a_regression_closes_the_gate_and_force_opens_it(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 21.8, 0.61, 0.28)
    with pytest.raises(DiffBFRError, match="worse than the champion diffbfr-cascade@1"):
        promote(registry)
    assert aliases(registry) == {"candidate": 2, "champion": 1}
    promote(registry, force=True)
    assert aliases(registry) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize(
    ("values", "metric"),
    [
        ((21.8, 0.61, 0.28), "psnr"),
        ((22.5, 0.58, 0.28), "ssim"),
        ((22.5, 0.61, 0.32), "squeezenet_distance"),
        ((math.nan, 0.61, 0.28), "psnr"),
    ],
)
def test_a_regression_in_one_metric_is_refused_with_the_table(values: tuple[float, ...], metric: str) -> None:
    with pytest.raises(DiffBFRError) as refusal:
        compare(version(1, 22.0, 0.6, 0.3), version(2, *values))
    first, head, *rows = str(refusal.value).splitlines()
    assert f"diffbfr-cascade@2 is worse than the champion diffbfr-cascade@1 in {metric};" in first
    assert head.split() == ["metric", "(TEM)", "champion", "candidate", "worse", "by", "allowed"]
    assert [row.split()[0] for row in rows if "<- too much" in row] == [metric]


def test_a_loss_within_the_margins_passes() -> None:
    assert not any(c.regressed for c in compare(version(1, 22.0, 0.6, 0.3), version(2, 21.95, 0.597, 0.305)))


def test_scores_on_other_faces_are_not_compared() -> None:
    with pytest.raises(DiffBFRError, match="the same held-out faces"):
        compare(version(1, 22.0, 0.6), version(2, 30.0, 0.9, dataset="two"))


def test_a_metric_that_only_one_of_them_has_is_left_out() -> None:
    assert [c.metric for c in compare(version(1, 22.0, 0.6, 0.3), version(2, 22.0, 0.6))] == ["psnr", "ssim"]


def test_promoting_again_after_a_crash_between_the_moves_finishes_the_job(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6)
    promote(registry)
    measured(registry, make_cascade(2), 22.0, 0.6)
    registry.client.set_registered_model_alias("diffbfr-cascade", "previous", "1")
    registry.client.set_registered_model_alias("diffbfr-cascade", "champion", "2")
    promote(registry)
    assert aliases(registry) == {"champion": 2, "previous": 1}


def test_registering_the_champion_again_makes_it_no_candidate(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6)
    promote(registry)
    make_cascade(1)
    assert aliases(registry) == {"champion": 1}


def test_rollback_without_a_history_is_refused(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    with pytest.raises(DiffBFRError, match="no previous champion"):
        rollback(registry)
