"""A worker that is stopped, or whose task never ends, is replaced, its task retried, and a line says so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbfr.errors import IncompleteError, UsageError
from pipelines.cluster import Cluster, ClusterConfig, pool
from pipelines.cluster.hangs import HangWatch, time_limit
from pipelines.cluster.node_watch import watch_node
from pipelines.cluster.orphans import DRIVER_VARIABLE, process_identity
from pipelines.cluster.stopped import stopped_workers_of_job
from pipelines.progress import Progress
from tests.pipelines.poison import MakeStopOnce, StopOnce


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_task_is_overdue_after_its_limit_or_five_times_the_longest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    watch = HangWatch("restore", limit_s=10.0, clock=clock)
    for position in (0, 1):
        watch.begin(position)
    clock.now = 8.0
    watch.end(0)
    clock.now = 40.0
    assert watch.overdue() == []
    clock.now = 40.5
    assert watch.overdue() == [1]
    assert watch.overdue() == []
    watch.end(1)  # its worker has died since
    assert [record.getMessage() for record in caplog.records] == [
        "restore: a task has not ended after 40 s; its worker is replaced and the task retried; if tasks may take "
        "so long, raise cluster.task_limit_s"
    ]


@pytest.fixture
def worker() -> Any:
    """A process that is named and marked like a worker of this driver's own Ray."""
    marked = {**os.environ, DRIVER_VARIABLE: process_identity(os.getpid())}
    process = subprocess.Popen(["ray::restore", "60"], executable="/bin/sleep", env=marked)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_stopped_worker_is_killed_after_the_limit_and_no_other_process(
    worker: "subprocess.Popen[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    watch = HangWatch("restore", stopped_s=30.0, clock=clock)
    other = subprocess.Popen(["ray::restore", "60"], executable="/bin/sleep")  # of another Ray
    try:
        for process in (worker, other):
            os.kill(process.pid, signal.SIGSTOP)
        while "T" not in Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.01)
        for now in (0.0, 29.0):
            clock.now = now
            watch.check()
            assert worker.poll() is None
        os.kill(worker.pid, signal.SIGCONT)  # one that goes on is left alone
        time.sleep(0.2)
        clock.now = 32.0
        watch.check()
        assert worker.poll() is None
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(0.2)
        for now in (40.0, 71.0):
            clock.now = now
            watch.check()
        assert worker.wait(timeout=10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert [record.getMessage() for record in caplog.records] == [
        f"restore: worker process {worker.pid} has been stopped for 31 s; it is ended, to be replaced, and its "
        "task retried"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_on_a_node_the_stopped_workers_of_a_job_are_found_and_no_others() -> None:
    workers = [
        subprocess.Popen(["ray::shard", "60"], executable="/bin/sleep", env={"RAY_JOB_ID": job})
        for job in ("0a000000", "0a000000", "0b000000")
    ]
    try:
        for worker in workers[1:]:
            os.kill(worker.pid, signal.SIGSTOP)
        while not (stopped_workers_of_job("0a000000") and stopped_workers_of_job("0b000000")):
            time.sleep(0.01)
        assert stopped_workers_of_job("0a000000") == [workers[1].pid]
        assert watch_node("0a000000", 0.0) == [(workers[1].pid, 0.0)]
        assert workers[1].wait(timeout=10) == -signal.SIGKILL
        assert [worker.poll() for worker in (workers[0], workers[2])] == [None, None]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


class RayError(Exception): ...


class Nodes:
    """Ray as `NodeWatches` uses it: nodes, and on each a watch that ends when the test says so."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self) -> None:
        self.alive = ["a", "b"]
        self.started: list[str] = []
        self.ended: dict[int, Any] = {}
        self.cancelled: list[int] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": name,
                "Alive": name in self.alive,
                "Resources": {"CPU": 0.0 if name == "head" else 1.0},
                "NodeManagerAddress": f"address of {name}",
            }
            for name in ("head", "a", "b", "c")
        ]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_job_id=lambda: "0a000000")

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(options=self._options)

    def _options(self, scheduling_strategy: Any) -> Any:
        self.started.append(scheduling_strategy.node_id)
        return SimpleNamespace(remote=lambda job, stopped_s: len(self.started) - 1)

    def wait(self, references: list[int], **_: Any) -> tuple[list[int], list[int]]:
        return [it for it in references if it in self.ended], []

    def get(self, reference: int) -> Any:
        if self.ended[reference] is None:
            raise RayError
        return self.ended[reference]

    def cancel(self, reference: int, force: bool) -> None:
        self.cancelled.append(reference)


def test_every_node_of_a_joined_cluster_is_watched_also_one_that_joins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, ray = Clock(), Nodes()
    affinity = SimpleNamespace(
        NodeAffinitySchedulingStrategy=lambda node, soft: SimpleNamespace(node_id=node)
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", affinity)
    with HangWatch("shard", stopped_s=30.0, clock=clock, on_nodes=True) as watch:
        watch.check()
        assert ray.started == [], "short work pays nothing"
        clock.now = 30.0
        watch.check()
        assert ray.started == ["a", "b"]
        ray.alive.append("c")
        ray.ended = {0: [(17, 31.0)], 1: None}  # the node of the second was lost for a moment
        clock.now = 39.0
        watch.check()
        assert ray.started == ["a", "b"]
        clock.now = 40.0
        watch.check()
        assert ray.started == ["a", "b", "a", "b", "c"]
        ray.ended[3] = [(18, 30.0)]  # just before the end
    assert ray.cancelled == [2, 4]
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "shard: worker process 17 of address of a has been stopped for 31 s",
        "shard: worker process 18 of address of b has been stopped for 30 s",
    ]


class Actor:
    """A handle whose calls are (actor, task, function)."""

    def __init__(self, worker: Any) -> None:
        self.ping = SimpleNamespace(remote=lambda: (self, None, worker.ping))
        self.run = SimpleNamespace(remote=lambda task: (self, task, lambda: worker.run(task)))


class HangingRay:
    """Ray with actors whose `run` never ends for a task in `hangs`, until they are killed."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=type("RayTaskError", (RayError,), {}))

    def __init__(self, hangs: Sequence[int], clock: Clock) -> None:
        self.hangs = list(hangs)
        self.clock = clock
        self.killed: list[Any] = []

    def remote(self, **_: float) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda factory: self._place(kind(factory)))

    def _place(self, worker: Any) -> "Actor":
        return Actor(worker)

    def wait(self, calls: Sequence[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.clock.now += 1
        return [call for call in calls if call[1] not in self.hangs or call[0] in self.killed][:1], []

    def get(self, call: Any) -> Any:
        actor, task, function = call
        if actor in self.killed:
            self.hangs.remove(task)  # once
            raise RayError
        return function()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}


@pytest.mark.parametrize("num_hangs", [1, 4])
def test_the_actor_of_a_task_that_hangs_is_replaced_and_the_task_retried_three_times(
    monkeypatch: pytest.MonkeyPatch, num_hangs: int
) -> None:
    clock = Clock()
    ray = HangingRay([2] * num_hangs, clock)
    monkeypatch.setitem(sys.modules, "ray", ray)
    collector = pool.Collector[int, int](
        "square", range(5), lambda _: 1, Progress("square", 5, "items"), None
    )
    watch = HangWatch("square", limit_s=20.0, clock=clock)
    pool.run_actors(lambda: lambda task: task**2, collector, 2, 1, 0.0, lambda: None, watch)
    if num_hangs == 1:
        assert collector.reports() == [0, 1, 4, 9, 16]
    else:
        with pytest.raises(IncompleteError, match="1 of 5 tasks failed"):
            collector.reports()


def test_a_block_that_takes_too_long_ends_its_process_with_its_stacks() -> None:
    program = "import time\nfrom pipelines.cluster.hangs import time_limit\nwith time_limit(0.2):\n    time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    with time_limit(30.0):
        pass  # and no clock runs on


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_limit_that_is_no_time_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match=r"cluster\.task_limit_s is .*; expected a positive number"):
        ClusterConfig(task_limit_s=limit)


@pytest.mark.cluster
def test_on_ray_a_stopped_worker_holds_no_task_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Cluster(ClusterConfig(num_workers=2, hang_s=3.0)) as cluster:
        make = MakeStopOnce(str(tmp_path / "actor"))
        assert cluster.map_actors(make, [0, 1, 2], label="square") == [0, 1, 4]
        function = StopOnce(str(tmp_path / "task"))
        assert cluster.map(function, [0, 1, 2], label="square") == [0, 1, 4]
    stopped = [record for record in caplog.records if "has been stopped for" in record.getMessage()]
    assert len(stopped) == 2


_JOINED = """
import sys
from tests.pipelines.poison import StopOnce
from tests.pipelines.trouble import Machines

machines = Machines(hang_s=3.0)
try:
    with machines.cluster as cluster:
        assert cluster.map(StopOnce(sys.argv[1]), [0, 1, 2], label="square") == [0, 1, 4]
finally:
    machines.end()
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_on_a_joined_cluster_a_stopped_worker_holds_no_task_for_ever(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _JOINED, str(tmp_path / "task")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "has been stopped for" in ended.stderr
