import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffbfr.errors import DiffBFRError
from pipelines.registry import (
    HoldOut,
    ModelVersion,
    get_version,
    holdout_of,
    list_actions,
    promote,
    read_faces,
    record_evaluation,
    rollback,
)
from pipelines.registry.evaluations import FaceScores, evaluation_tags
from pipelines.registry.promotion import RegressionError, compare, format_comparisons
from pipelines.tracking.connection import Registry
from tests.counts import count
from tests.pipelines.registry.contenders import contend
from tests.pipelines.registry.fixtures import CascadeMaker
from tests.pipelines.registry.scored import aliases, evaluation, measured

HOLDOUT = holdout_of(evaluation((0.0, 0.0, 0.0)), "/data")


def test_the_first_evaluated_candidate_becomes_champion(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promotion = promote(registry)
    assert promotion.champion.aliases == ("champion",)
    assert promotion.previous is None
    assert aliases(registry) == {"champion": 1}


@pytest.mark.slow
def test_an_unmeasured_candidate_is_refused(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    with pytest.raises(DiffBFRError, match="there is no hold-out to measure diffbfr-cascade@1 on"):
        promote(registry)
    measured(registry, make_cascade(1), 22.0, 0.6)
    promote(registry)
    make_cascade(2)
    with pytest.raises(
        DiffBFRError, match=r"diffbfr-cascade@2 has no psnr v.*, ssim v.* on the hold-out .*, it has nothing"
    ):
        promote(registry)
    assert aliases(registry) == {"candidate": 2, "champion": 1}


def test_a_stage_is_measured_by_nobody_and_promoted_by_force_only(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    make_cascade(1)
    with pytest.raises(DiffBFRError, match="is one stage"):
        promote(registry, "diffbfr-tem@candidate")
    assert promote(registry, "diffbfr-tem@candidate", force=True).champion.aliases == ("champion",)


@pytest.mark.slow
def test_a_better_candidate_replaces_the_champion_and_rollback_swaps_them(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 22.5, 0.61, 0.28)
    promotion = promote(registry)
    assert [comparison.metric for comparison in promotion.comparisons] == [
        "psnr",
        "ssim",
        "squeezenet_distance",
    ]
    assert promotion.comparisons[0].loss == pytest.approx(-0.5)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    rollback(registry)
    assert aliases(registry) == {"champion": 1, "previous": 2}
    rollback(registry)
    assert aliases(registry) == {"champion": 2, "previous": 1}


def version(number: int, *values: float, dataset: str = "one") -> ModelVersion:
    return ModelVersion(
        "diffbfr-cascade", number, "d", (), "", "", "", evaluation_tags(evaluation(values, dataset))
    )


def same_on_every_face(of: ModelVersion) -> FaceScores:
    means = {
        name.removeprefix("eval.tem."): float(value)
        for name, value in of.tags.items()
        if name.startswith("eval.tem.")
    }
    return {metric: {f"face-{i}": value for i in range(10)} for metric, value in means.items()}


@pytest.mark.slow
def test_a_regression_closes_the_gate_and_force_opens_it(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 21.8, 0.61, 0.28)
    with pytest.raises(DiffBFRError, match="may be worse than the champion diffbfr-cascade@1"):
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
    with pytest.raises(
        RegressionError,
        match=f"diffbfr-cascade@2 may be worse than the champion diffbfr-cascade@1 in {metric};",
    ) as refusal:
        compare(version(1, 22.0, 0.6, 0.3), version(2, *values), HOLDOUT, same_on_every_face)
    assert refusal.value.exit_code == 4
    head, *rows = format_comparisons(refusal.value.comparisons).splitlines()
    assert head.split() == [
        "metric",
        "(TEM)",
        "champion",
        "candidate",
        "worse",
        "by",
        "at",
        "most",
        "allowed",
    ]
    assert [row.split()[0] for row in rows if "<- too much" in row] == [metric]


def test_a_loss_within_the_margins_passes() -> None:
    assert not any(
        c.regressed
        for c in compare(
            version(1, 22.0, 0.6, 0.3), version(2, 21.95, 0.597, 0.305), HOLDOUT, same_on_every_face
        )
    )


def test_scores_on_other_faces_are_not_compared() -> None:
    with pytest.raises(
        DiffBFRError,
        match=r"diffbfr-cascade@2 has no psnr v.*it has nothing; expected every metric of the hold-out",
    ):
        compare(
            version(1, 22.0, 0.6, 0.3), version(2, 30.0, 0.9, 0.1, dataset="two"), HOLDOUT, same_on_every_face
        )


@pytest.mark.parametrize("lacking", [1, 2])
def test_a_metric_that_only_one_of_them_has_closes_the_gate_and_is_named(lacking: int) -> None:
    values = [(22.0, 0.6) if number == lacking else (22.0, 0.6, 0.3) for number in (1, 2)]
    with pytest.raises(
        DiffBFRError,
        match=f"diffbfr-cascade@{lacking} has no squeezenet_distance v.*, it has psnr v.*, ssim v",
    ):
        compare(version(1, *values[0]), version(2, *values[1]), HOLDOUT, same_on_every_face)


def test_a_metric_of_another_version_closes_the_gate() -> None:
    newer = HoldOut(HOLDOUT.dataset, HOLDOUT.protocol, {**HOLDOUT.metrics, "psnr": "next"})
    with pytest.raises(DiffBFRError, match="diffbfr-cascade@1 has no psnr vnext on the hold-out"):
        compare(version(1, 22.0, 0.6, 0.3), version(2, 22.0, 0.6, 0.3), newer, same_on_every_face)


def test_a_table_of_scores_that_was_changed_in_the_store_is_refused(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    it = measured(registry, make_cascade(1), 22.0, 0.6)
    protocol = HOLDOUT.protocol.digest
    assert set(read_faces(registry, it, protocol)["psnr"].values()) == {22.0}
    place = (
        Path(registry.client.get_run(it.run_id).info.artifact_uri.removeprefix("file://"))
        / "evaluation"
        / protocol
    )
    table = place / "diffbfr-cascade-1.csv"
    table.write_text(table.read_text().replace("22.0", "32.0"))
    with pytest.raises(DiffBFRError, match="was changed; expected sha256"):
        read_faces(registry, it, protocol)


@pytest.mark.slow
def test_scores_by_several_protocols_are_kept_side_by_side(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6)
    promote(registry)
    better = make_cascade(2)
    measured(registry, better, 23.0, 0.6)
    record_evaluation(registry, better, evaluation((9.0, 0.1), "another data set"))
    assert promote(registry).comparisons[0].candidate == 23.0


@pytest.mark.slow
def test_registering_the_champion_again_makes_it_no_candidate(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6)
    promote(registry)
    make_cascade(1)
    assert aliases(registry) == {"champion": 1}


def test_rollback_without_a_history_is_refused(make_cascade: CascadeMaker, registry: Registry) -> None:
    make_cascade(1)
    with pytest.raises(DiffBFRError, match="no previous champion"):
        rollback(registry)


def test_a_mean_within_the_margin_is_not_enough_where_the_faces_disagree() -> None:
    """The mean loss is 0.05 dB, half the margin, but a few faces decide it: the interval reaches beyond."""

    def faces_of(of: ModelVersion) -> FaceScores:
        losses = [1.4, -1.3, 1.2, -1.1, 0.6, -0.5, 0.4, -0.3, 0.3, -0.2] if of.version == 2 else [0.0] * 10
        return {"psnr": {f"face-{i}": 22.0 - loss for i, loss in enumerate(losses)}}

    with pytest.raises(RegressionError) as refusal:
        compare(version(1, 22.0), version(2, 21.95), holdout_of(evaluation((0.0,)), "/data"), faces_of)
    (psnr,) = refusal.value.comparisons
    assert psnr.loss == pytest.approx(0.05)
    assert psnr.at_most > 0.3


@pytest.mark.slow
def test_the_audit_log_keeps_every_move_with_its_reason(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 21.0, 0.5, 0.4)
    promote(registry, force=True, why="the old one leaks")
    rollback(registry, why="it did not")
    log = [it for it in list_actions(registry) if it.action != "holdout"]
    assert [(it.action, it.before, it.after, it.why) for it in log] == [
        ("promote", "", "diffbfr-cascade@1", "the first champion"),
        ("promote --force", "diffbfr-cascade@1", "diffbfr-cascade@2", "the old one leaks"),
        ("rollback", "diffbfr-cascade@2", "diffbfr-cascade@1", "it did not"),
    ]
    assert all("@" in it.user and it.when for it in log)


@contextmanager
def watched(registry: Registry) -> Iterator[list[tuple[int, int]]]:
    """Read champion and previous all the while, as a stranger would; what a reader cannot read fails the
    test.
    """
    stop, seen, errors = threading.Event(), [], []

    def read() -> None:
        try:
            while not stop.is_set():
                champion = get_version(registry, "diffbfr-cascade@champion").version
                previous = get_version(registry, "diffbfr-cascade@previous").version
                seen.append((champion, previous))
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield seen
    finally:
        stop.set()
        reader.join()
    assert errors == []
    assert len(seen) > 1
    assert seen == sorted(seen), "no alias ever goes back"


def three_cascades(make_cascade: CascadeMaker, registry: Registry) -> None:
    """A champion, one before it, and a candidate that is better."""
    for number in (1, 2, 3):
        measured(registry, make_cascade(number), 22.0 + number, 0.6, 0.3)
        if number < 3:
            promote(registry)


@pytest.mark.slow
def test_of_many_who_promote_the_candidate_at_once_one_does(
    make_cascade: CascadeMaker, registry: Registry
) -> None:
    three_cascades(make_cascade, registry)

    def attempt(_: int) -> bool:
        try:
            promote(registry)
        except DiffBFRError:
            return False
        return True

    with watched(registry) as seen, ThreadPoolExecutor(count(16, 50)) as pool:
        wins = sum(pool.map(attempt, range(count(16, 50))))
    assert wins == 1
    assert set(seen) <= {(2, 1), (2, 2), (3, 2)}
    assert aliases(registry) == {"champion": 3, "previous": 2}
    assert [it.action for it in list_actions(registry)].count("promote") == 3


@pytest.mark.slow
def test_of_many_processes_that_promote_at_once_one_does(
    make_cascade: CascadeMaker, registry: Registry, tmp_path: Path
) -> None:
    three_cascades(make_cascade, registry)
    contenders = count(12, 50)
    contest = contend(tmp_path / "root", registry.uri, registry.experiment, contenders)
    assert len(contest.answers) == contenders
    assert contest.answers.count("won") == 1, contest.answers
    assert all(answer == "won" or "has no 'candidate'" in answer for answer in contest.answers), (
        contest.answers
    )
    assert contest.num_reads > contenders // 5
    assert [pair for pair in ([2, 1], [2, 2], [3, 2]) if pair in contest.seen] == contest.seen, (
        "no alias ever goes back"
    )
    assert aliases(registry) == {"champion": 3, "previous": 2}
    assert [it.action for it in list_actions(registry)].count("promote") == 3
