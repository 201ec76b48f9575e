"""A column has the same bytes for any batches, retries, workers and kills; degenerate images are excluded."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from diffbfr import cascade
from diffbfr.digests import model_digest
from diffbfr.errors import QuarantineError
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.pool import Collector, run_actors
from pipelines.dataset import columns
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.dataset.verify_records import verify_records
from pipelines.progress import Progress
from pipelines.steps.condition import (
    ConditionReport,
    ConditionTask,
    condition,
    finish_condition,
    make_conditioner,
    plan_condition,
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
    return plan_condition(
        ConditionTask(0, str(dataset), "irm1-abc", (), 2, tiny_specs()[0], str(model), digest)
    )


def tars(tasks: list[ConditionTask]) -> dict[str, str]:
    folder = Path(tasks[0].dataset, "irm1-abc")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def finish(tasks: list[ConditionTask], max_bad_share: float = 0.0) -> Path:
    table = Path(tasks[0].dataset, "bad.json")
    finish_condition(tasks, max_bad_share, str(table))
    return table


def anew(tasks: list[ConditionTask]) -> None:
    storage.remove_tree(storage.join(tasks[0].dataset, "irm1-abc"))


@pytest.mark.slow
def test_the_column_is_the_same_bytes_in_any_batches_and_order_and_after_a_stop(
    tasks: list[ConditionTask],
) -> None:
    for task in tasks:
        condition(task)
    finish(tasks)
    whole = tars(tasks)
    assert len(whole) == len(tasks) == 3
    for batch in (1, 3):
        anew(tasks)
        worker = make_conditioner(tasks[0])
        reports = [worker(replace(task, batch=batch)) for task in reversed(tasks[1:])]
        again = [worker(replace(task, batch=batch)) for task in tasks]
        assert [report.skipped for report in reports] == [False, False]
        assert [report.skipped for report in again] == [False, True, True]
        finish(tasks)
        assert tars(tasks) == whole


def dying_conditioner(first: ConditionTask, mark: str) -> Callable[[ConditionTask], ConditionReport]:
    """A worker that dies once, after the second shard's images are made and before they are committed."""
    worker = make_conditioner(first)

    def die(*_: object) -> None:
        Path(mark).touch()
        os._exit(9)

    def run(task: ConditionTask) -> ConditionReport:
        if task.index == 1 and not Path(mark).exists():
            columns.write_column_shard = die  # type: ignore[assignment]
        return worker(task)

    return run


def waiting_conditioner(first: ConditionTask, folder: str) -> Callable[[ConditionTask], ConditionReport]:
    """A worker that waits at its first task until three workers have one."""
    worker = make_conditioner(first)

    def run(task: ConditionTask) -> ConditionReport:
        Path(folder, f"{os.getpid()}.here").touch()
        while len(list(Path(folder).glob("*.here"))) < 3:
            time.sleep(0.05)
        return worker(task)

    return run


@pytest.mark.cluster
@pytest.mark.slow
def test_one_two_and_three_actors_one_of_which_dies_make_the_same_bytes_as_one_process(
    tasks: list[ConditionTask], cluster: Cluster, serial: Cluster, tmp_path: Path
) -> None:
    alone = Cluster(ClusterConfig(num_workers=1, cpus_per_worker=1))
    mark = str(tmp_path / "died")
    ways = (
        (serial, make_conditioner),
        (alone, make_conditioner),
        (cluster, partial(dying_conditioner, mark=mark)),
    )
    made = []
    for where, factory in ways:
        anew(tasks)
        where.map_actors(partial(factory, tasks[0]), tasks, label="condition", one_core=True)
        finish(tasks)
        made.append(tars(tasks))
    assert Path(mark).exists()
    anew(tasks)
    collector = Collector[ConditionTask, ConditionReport](
        "condition", tasks, lambda task: 1, Progress("condition", 3, "img"), None
    )
    run_actors(
        partial(waiting_conditioner, tasks[0], str(tmp_path)), collector, 3, 0, 0.0, lambda: None
    )  # of no core: here may be two
    finish(tasks)
    assert len(list(tmp_path.glob("*.here"))) == 3
    assert made[0] == made[1] == made[2] == tars(tasks)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sampler_runs_on_one_thread_whatever_the_process_has(
    tasks: list[ConditionTask], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    true_sample, seen, before = cascade.sample, set[int](), torch.get_num_threads()

    def sample(*args: object, **kwargs: object) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return true_sample(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(cascade, "sample", sample)
    torch.set_num_threads(threads)
    try:
        condition(tasks[0])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "not_finite"), (float("inf"), "not_finite"), (0.25, "constant")]
)
def test_a_degenerate_picture_is_quarantined_counted_and_bounded(
    tasks: list[ConditionTask], monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    true_sample = cascade.sample

    def sample(*args: object, **kwargs: object) -> torch.Tensor:
        made = true_sample(*args, **kwargs)  # type: ignore[arg-type]
        made[1] = value
        return made

    worker = make_conditioner(tasks[0])
    good = [worker(task) for task in tasks[1:]]
    monkeypatch.setattr(cascade, "sample", sample)
    bad = worker(tasks[0])
    key = tasks[0].keys[0]
    assert [report.quarantined for report in (bad, *good)] == [1, 0, 0]
    assert worker(tasks[0]) == replace(bad, skipped=True, seconds=pytest.approx(0, abs=30))
    expected = (
        rf"1 of 24 images by irm1 are degenerate \(first: {key}.1.png, {reason}\); expected at most "
        rf"column.max_bad_share=0.04"
    )
    with pytest.raises(QuarantineError, match=expected):
        finish(tasks, 0.04)
    assert "irm1-abc" not in {column.column for column in open_dataset(tasks[0].dataset).columns}
    table = finish(tasks, 1 / 24)
    (row,) = json.loads(table.read_text())
    assert (row["source"], row["reason"]) == (f"{key}.1.png", reason)
    assert open_dataset(tasks[0].dataset).column("irm1-abc").quarantined == ((key, "1.png"),)
    assert verify_records(tasks[0].dataset) == []


@pytest.mark.slow
def test_a_column_record_that_names_other_images_than_its_shards_is_found(
    tasks: list[ConditionTask],
) -> None:
    for task in tasks:
        condition(task)
    finish(tasks)
    place = storage.join(tasks[0].dataset, "irm1-abc", "column.json")
    write_checksummed_json(
        place, read_checksummed_json(place) | {"quarantined": [[tasks[0].keys[0], "0.png"]]}
    )
    (found,) = verify_records(tasks[0].dataset)
    assert found.path == "irm1-abc/column.json"
    assert found.message.startswith("1 images are quarantined, by the shards' records 0")


def test_a_flat_picture_of_a_flat_photo_is_not_degenerate(
    tasks: list[ConditionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_sample = cascade.sample
    monkeypatch.setattr(
        cascade, "sample", lambda *args, **kwargs: torch.zeros_like(true_sample(*args, **kwargs))
    )
    monkeypatch.setattr(
        "pipelines.steps.condition.lq_to_model", lambda pixels, px: pixels[:1, :1].repeat(px, 0).repeat(px, 1)
    )
    assert condition(tasks[0]).quarantined == 0
