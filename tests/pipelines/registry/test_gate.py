import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from diffbfr.errors import DiffBFRError
from diffbfr.metrics import psnr, squeezenet, ssim
from diffbfr.metrics.intervals import Interval
from pipelines.registry import ModelVersion, Registry, get_version, list_actions, promote, record_evaluation, rollback, turns
from pipelines.registry.gate import FaceScores, RegressionError, compare, evaluation_tags, format_comparisons
from pipelines.steps.evaluate import SUBJECTS, Row
from pipelines.steps.scores import Evaluation, Protocol, SubjectScores
from tests.pipelines.registry.conftest import CascadeMaker

CARDS = (psnr.CARD, ssim.CARD, squeezenet.CARD)


def evaluation(values: tuple[float, ...], dataset: str = "one") -> Evaluation:
    cards = CARDS[: len(values)]
    protocol = Protocol(dataset, "test", 10, 0, (0,), "fast", 128, "k" * 64, tuple(card.name for card in cards))
    table = tuple(SubjectScores(subject, tuple(Interval(value, value, value, 10) for value in values)) for subject in SUBJECTS)
    rows = tuple(Row(f"face-{i}", subject, 0, values) for i in range(10) for subject in SUBJECTS)
    return Evaluation(protocol, cards, table, rows, ())


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


def same_on_every_face(of: ModelVersion) -> FaceScores:
    means = {name.removeprefix("eval.tem."): float(value) for name, value in of.tags.items() if name.startswith("eval.tem.")}
    return {metric: {f"face-{i}": value for i in range(10)} for metric, value in means.items()}


def test_a_regression_closes_the_gate_and_force_opens_it(make_cascade: CascadeMaker, registry: Registry) -> None:
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
        RegressionError, match=f"diffbfr-cascade@2 may be worse than the champion diffbfr-cascade@1 in {metric};"
    ) as refusal:
        compare(version(1, 22.0, 0.6, 0.3), version(2, *values), same_on_every_face)
    assert refusal.value.exit_code == 4
    head, *rows = format_comparisons(refusal.value.comparisons).splitlines()
    assert head.split() == ["metric", "(TEM)", "champion", "candidate", "worse", "by", "at", "most", "allowed"]
    assert [row.split()[0] for row in rows if "<- too much" in row] == [metric]


def test_a_loss_within_the_margins_passes() -> None:
    assert not any(c.regressed for c in compare(version(1, 22.0, 0.6, 0.3), version(2, 21.95, 0.597, 0.305), same_on_every_face))


def test_scores_on_other_faces_are_not_compared() -> None:
    with pytest.raises(DiffBFRError, match="the same held-out faces"):
        compare(version(1, 22.0, 0.6), version(2, 30.0, 0.9, dataset="two"), same_on_every_face)


def test_a_metric_that_only_one_of_them_has_is_left_out() -> None:
    assert [c.metric for c in compare(version(1, 22.0, 0.6, 0.3), version(2, 22.0, 0.6), same_on_every_face)] == ["psnr", "ssim"]


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


def test_a_mean_within_the_margin_is_not_enough_where_the_faces_disagree() -> None:
    """The mean loss is 0.05 dB, half the margin, but a few faces decide it: the interval reaches beyond."""

    def faces_of(of: ModelVersion) -> FaceScores:
        losses = [1.4, -1.3, 1.2, -1.1, 0.6, -0.5, 0.4, -0.3, 0.3, -0.2] if of.version == 2 else [0.0] * 10
        return {"psnr": {f"face-{i}": 22.0 - loss for i, loss in enumerate(losses)}}

    with pytest.raises(RegressionError) as refusal:
        compare(version(1, 22.0), version(2, 21.95), faces_of)
    (psnr,) = refusal.value.comparisons
    assert psnr.loss == pytest.approx(0.05)
    assert psnr.at_most > 0.3


def test_the_audit_log_keeps_every_move_with_its_reason(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 21.0, 0.5, 0.4)
    promote(registry, force=True, why="the old one leaks")
    rollback(registry, why="it did not")
    log = list_actions(registry)
    assert [(it.action, it.before, it.after, it.why) for it in log] == [
        ("promote", "", "diffbfr-cascade@1", "the first champion"),
        ("promote --force", "diffbfr-cascade@1", "diffbfr-cascade@2", "the old one leaks"),
        ("rollback", "diffbfr-cascade@2", "diffbfr-cascade@1", "it did not"),
    ]
    assert all("@" in it.who and it.when for it in log)


def test_of_many_who_promote_the_candidate_at_once_one_does(make_cascade: CascadeMaker, registry: Registry) -> None:
    measured(registry, make_cascade(1), 22.0, 0.6, 0.3)
    promote(registry)
    measured(registry, make_cascade(2), 22.5, 0.61, 0.28)

    def attempt(_: int) -> bool:
        try:
            promote(registry)
        except DiffBFRError:
            return False
        return True

    reading, dangling = threading.Event(), []

    def read() -> None:
        while not reading.is_set():
            if get_version(registry, "diffbfr-cascade@champion").version not in (1, 2):
                dangling.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(50) as pool:
        wins = sum(pool.map(attempt, range(50)))
    reading.set()
    reader.join()
    assert wins == 1
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert dangling == []
    assert len(list_actions(registry)) == 2


_PROMOTE = """
import sys, time
from diffbfr.errors import DiffBFRError
from pipelines.registry import open_registry, promote
registry = open_registry(sys.argv[1], experiment=sys.argv[2])
registry.client
for _ in range(int(sys.argv[3])):
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        promote(registry)
        print("won", flush=True)
    except DiffBFRError as error:
        print(f"lost: {error}", flush=True)
"""


@pytest.mark.slow
def test_of_fifty_promotions_by_processes_one_wins_a_turn(make_cascade: CascadeMaker, registry: Registry, tmp_path: Path) -> None:
    """Five processes, ten turns: in each a new candidate, which all promote at once; a reader looks on."""
    num_processes, num_turns = 5, 10
    measured(registry, make_cascade(0), 22.0, 0.6, 0.3)
    promote(registry)
    command = [sys.executable, "-c", _PROMOTE, str(tmp_path / "root"), registry.experiment, str(num_turns)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rivals = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[3])
        for _ in range(num_processes)
    ]
    reading, seen = threading.Event(), []

    def read() -> None:
        while not reading.is_set():
            seen.append(get_version(registry, "diffbfr-cascade@champion").version)

    reader = threading.Thread(target=read)
    try:
        for rival in rivals:
            assert rival.stdout is not None
            assert rival.stdout.readline() == "ready\n"
        reader.start()
        for number in range(1, num_turns + 1):
            measured(registry, make_cascade(number), 22.0 + number, 0.6 + number / 100, 0.3 - number / 100)
            for rival in rivals:
                assert rival.stdin is not None
                rival.stdin.write("go\n")
                rival.stdin.flush()
            answers = []
            for rival in rivals:
                assert rival.stdout is not None
                answers.append(rival.stdout.readline().strip())
                if number < num_turns:
                    assert rival.stdout.readline() == "ready\n"
            assert answers.count("won") == 1, answers
            assert all(answer == "won" or "no 'candidate'" in answer for answer in answers), answers
            assert aliases(registry) == {"champion": number + 1, "previous": number}
    finally:
        reading.set()
        for rival in rivals:
            rival.kill()
            rival.wait()
        reader.join()
    assert seen == sorted(seen)
    assert len(list_actions(registry)) == 1 + num_turns


def test_a_turn_whose_holder_died_is_taken_over(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.client.create_registered_model("diffbfr-cascade.turn")
    monkeypatch.setattr(turns, "_PATIENCE_S", 0.3)
    with pytest.raises(DiffBFRError, match="expected a turn"), turns.turn(registry, "diffbfr-cascade"):
        pass
    monkeypatch.setattr(turns, "_STALE_S", 0.0)
    with turns.turn(registry, "diffbfr-cascade"):
        pass
    assert not [model.name for model in registry.client.search_registered_models() if "turn" in model.name]


def test_a_turn_that_is_given_back_while_mlflow_looks_it_up_is_waited_for(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who create a name at once one loses; MLflow looks the other's up to say so, and finds nothing if that was quick."""
    create, calls = registry.client.create_registered_model, []

    def lose_once(name: str) -> object:
        calls.append(name)
        if len(calls) == 1:
            raise MlflowException(f"Registered Model with name={name} not found", RESOURCE_DOES_NOT_EXIST)
        return create(name)

    monkeypatch.setattr(registry.client, "create_registered_model", lose_once)
    with turns.turn(registry, "diffbfr-cascade"):
        assert len(calls) == 2
