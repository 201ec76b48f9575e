"""Workers that are killed with SIGKILL at any time leave the dataset of an undisturbed run."""

import os
import random
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from pipelines.cluster import Cluster
from pipelines.sources import open_source
from pipelines.steps.shard import ShardConfig, ShardReport, ShardTask, finish_dataset, plan_shards, shard
from tests import forks
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos, picture

NUM_KILLS = 20


def _plan(photos: Path | str, root: Path, config: ShardConfig) -> list[ShardTask]:
    return plan_shards(open_source(photos), config, str(root))


def _files(root: Path) -> dict[str, bytes]:
    """Every published file."""
    files = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    return {name: data for name, data in files.items() if not name.endswith(".tmp")}


def _shard_all(tasks: list[ShardTask]) -> None:
    for task in tasks:
        shard(task)


@pytest.mark.slow
def test_a_build_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    faces = "synthetic:count=40,seed=1,px=48"
    config = replace(CONFIG, shard_size=4)
    expected = build(faces, tmp_path / "whole", config)
    root = tmp_path / "killed"
    for _ in range(3):
        done = len(list(root.glob("commits/*.json")))
        process = forks.process(_shard_all, _plan(faces, root, config))
        process.start()
        deadline = time.monotonic() + 60
        while (
            len(list(root.glob("commits/*.json"))) <= done
            and process.is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert build(faces, root, config) == expected
    assert _files(root) == _files(tmp_path / "whole")


def _shard_in_any_order(tasks: list[ShardTask], seed: int) -> None:
    """What a worker does, without a child of its own: how often it is killed is what counts here."""
    from pipelines.steps import shard as step

    step.run_sandboxed = lambda function, *arguments, returns: function(*arguments)  # type: ignore[assignment]
    for task in random.Random(seed).sample(tasks, len(tasks)):
        step.shard(task)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_20_kills_of_any_number_of_workers_in_any_order_leave_the_same_dataset(
    tmp_path: Path, num_workers: int
) -> None:
    for number in range(120):
        place = tmp_path / "photos" / f"{number:05d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(picture(number))
    config = replace(CONFIG, shard_size=2)
    expected = build(tmp_path / "photos", tmp_path / "calm", config)
    root, rng = tmp_path / "killed", random.Random(num_workers)
    tasks = _plan(tmp_path / "photos", root, config)

    def start() -> ForkServerProcess:
        worker = forks.process(_shard_in_any_order, tasks, rng.randrange(1 << 30))
        worker.start()
        return worker

    workers, kills, committed = [start() for _ in range(num_workers)], 0, -1
    while kills < NUM_KILLS:
        now = len(list(root.glob("commits/*.json")))
        if now == len(tasks):  # too fast for us: some shards are lost, as if a disk had failed
            tars = sorted(root.glob("lq/*.tar"))
            for path in rng.sample(tars, min(10, len(tars))):
                path.unlink()
        if now > committed or rng.random() < 0.2:
            committed = now
            time.sleep(rng.random() * 0.03)
            victim = rng.randrange(num_workers)
            if workers[victim].is_alive():
                os.kill(workers[victim].pid or 0, signal.SIGKILL)
                kills += 1
            workers[victim].join()
            workers[victim] = start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert finish_dataset(str(root), tasks) == expected
    assert _files(root) == _files(tmp_path / "calm")


class Killer(threading.Thread):
    """Answers each task as it starts, and kills some of the workers a moment later, up to a number of kills."""

    def __init__(self, folder: Path, dataset: Path, num_tasks: int) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []
        self._folder, self._dataset, self._num_tasks = folder, dataset, num_tasks
        self._rng, self._over = random.Random(0), threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.005):
            for question in sorted(self._folder.glob("*.asked")):
                worker = int(question.name.partition("-")[0])
                if worker not in self.killed:
                    self._answer(worker, question)
                question.unlink()

    def end(self) -> None:
        self._over.set()
        self.join()

    def _answer(self, worker: int, question: Path) -> None:
        to_come = (
            self._num_tasks - len(list(self._dataset.glob("commits/*.json"))) - 1
        )  # the other worker may be at one that lives
        share = (NUM_KILLS - len(self.killed)) / max(to_come, 1)
        if self._rng.random() >= share:
            question.with_suffix(".answered").touch()
            return
        if share < 1:
            question.with_suffix(".answered").touch()
            time.sleep(self._rng.random() * 0.2)  # before, while or after it writes
        os.kill(worker, signal.SIGKILL)
        self.killed.append(worker)


def _ask_and_shard(folder: Path, task: ShardTask) -> ShardReport:
    question = folder / f"{os.getpid()}-{time.monotonic_ns()}.asked"
    question.touch()
    while not question.with_suffix(".answered").exists():
        time.sleep(0.005)
    return shard(task)


@pytest.mark.cluster
@pytest.mark.slow
def test_20_kills_of_the_workers_of_a_cluster_leave_the_dataset_of_one_process(
    tmp_path: Path, cluster: Cluster
) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    config = replace(CONFIG, shard_size=2)
    expected = build(photos, tmp_path / "calm", config)
    tasks = _plan(photos, tmp_path / "killed", config)
    (tmp_path / "asked").mkdir()
    killer = Killer(tmp_path / "asked", tmp_path / "killed", len(tasks))
    killer.start()
    cluster.map(partial(_ask_and_shard, tmp_path / "asked"), tasks, label="shard")
    killer.end()
    assert len(set(killer.killed)) == NUM_KILLS
    assert finish_dataset(str(tmp_path / "killed"), tasks).content_id == expected.content_id
    assert _files(tmp_path / "killed") == _files(tmp_path / "calm")
