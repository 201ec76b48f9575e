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
from pipelines.cluster.orphans import DRIVER_VARIABLE, process_identity
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


class RayError(Exception): ...


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
