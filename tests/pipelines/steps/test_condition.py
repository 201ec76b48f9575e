"""A column is the same bytes however the work is cut, repeated or spread; a picture that is none never gets into it."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from diffbfr import cascade
from diffbfr.errors import QuarantineError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.registry import model_digest
from pipelines.steps.condition import (
    ConditionTask,
    Degenerate,
    condition,
    finish_condition,
    make_conditioner,
    plan_condition,
    refuse_degenerate,
)
from tests.pipelines.tiny_cascade import make_tiny_cascade, tiny_specs
from tests.pipelines.tiny_dataset import make_dataset


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cascade(tmp_path_factory.mktemp("model") / "cascade")


@pytest.fixture
def tasks(model: Path, tmp_path: Path) -> list[ConditionTask]:
    dataset = make_dataset(tmp_path, lq_px=16)
    digest = model_digest(model, ("irm1",))
    return plan_condition(ConditionTask(0, str(dataset), "irm1-abc", (), 2, tiny_specs()[0], str(model), digest))


def tars(tasks: list[ConditionTask]) -> dict[str, str]:
    folder = Path(tasks[0].dataset, "irm1-abc")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def anew(tasks: list[ConditionTask]) -> None:
    storage.remove_tree(storage.join(tasks[0].dataset, "irm1-abc"))


def test_the_column_is_the_same_bytes_in_any_batches_and_order_and_after_a_stop(tasks: list[ConditionTask]) -> None:
    for task in tasks:
        condition(task)
    finish_condition(tasks)
    whole = tars(tasks)
    assert len(whole) == len(tasks) == 3
    for batch in (1, 3):
        anew(tasks)
        worker = make_conditioner(tasks[0])
        reports = [worker(replace(task, batch=batch)) for task in reversed(tasks[1:])]
        again = [worker(replace(task, batch=batch)) for task in tasks]
        assert [report.skipped for report in reports] == [False, False]
        assert [report.skipped for report in again] == [False, True, True]
        finish_condition(tasks)
        assert tars(tasks) == whole


@pytest.mark.cluster
@pytest.mark.slow
def test_actors_make_the_same_bytes_as_one_process(tasks: list[ConditionTask], cluster: Cluster, serial: Cluster) -> None:
    made = []
    for where in (serial, cluster):
        anew(tasks)
        where.map_actors(partial(make_conditioner, tasks[0]), tasks, label="condition")
        finish_condition(tasks)
        made.append(tars(tasks))
    assert made[0] == made[1]


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "not_finite"), (float("inf"), "not_finite"), (0.25, "constant")])
def test_degenerate_pictures_are_counted_and_their_shard_is_not_committed(
    tasks: list[ConditionTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    true_sample = cascade.sample

    def sample(*args: object, **kwargs: object) -> torch.Tensor:
        made = true_sample(*args, **kwargs)  # type: ignore[arg-type]
        made[1] = value
        return made

    monkeypatch.setattr(cascade, "sample", sample)
    worker = make_conditioner(tasks[0])
    bad = worker(tasks[0])
    monkeypatch.setattr(cascade, "sample", true_sample)
    good = [worker(task) for task in tasks[1:]]
    assert bad.degenerate == (Degenerate(tasks[0].keys[0], 1, reason),)  # type: ignore[arg-type]
    assert sorted(tars(tasks)) == ["000001.tar", "000002.tar"]
    table = tmp_path / "quarantine.json"
    refuse_degenerate(good, str(table))
    assert not table.exists()
    with pytest.raises(
        QuarantineError, match=rf"1 of 24 pictures by irm1 are degenerate \(first: {tasks[0].keys[0]}, variant 1: {reason}\)"
    ):
        refuse_degenerate([bad, *good], str(table))
    assert json.loads(table.read_text()) == [{"key": tasks[0].keys[0], "variant": 1, "reason": reason}]


def test_a_flat_picture_of_a_flat_photo_is_not_degenerate(tasks: list[ConditionTask], monkeypatch: pytest.MonkeyPatch) -> None:
    true_sample = cascade.sample
    monkeypatch.setattr(cascade, "sample", lambda *args, **kwargs: torch.zeros_like(true_sample(*args, **kwargs)))
    monkeypatch.setattr("pipelines.steps.condition.lq_to_model", lambda pixels, px: pixels[:1, :1].repeat(px, 0).repeat(px, 1))
    assert condition(tasks[0]).degenerate == ()
