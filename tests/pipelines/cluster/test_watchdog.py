"""A hang is a silence of all ranks; all are then killed, and the stacks of each are logged."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cluster.monitor import Goodput, RankHeartbeat, TrainingMonitor
from pipelines.cluster.protocol import Metrics
from pipelines.cluster.watchdog import (
    END_S,
    LONGEST_S,
    START_S,
    RankReporter,
    dump_worker_stacks,
    kill_hung_ranks,
    kill_worker,
)
from tests.pipelines.cluster.fake_monitor import FakeMonitorClient


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _heartbeat(rank: int, step: int = 1, limit_s: float = 30.0) -> RankHeartbeat:
    return RankHeartbeat(rank, 1000 + rank, "node", step, limit_s)


def test_a_hang_is_a_silence_of_all_ranks() -> None:
    clock = Clock()
    monitor = TrainingMonitor(clock)
    assert monitor.hung_ranks() == []
    for rank in (0, 1):
        monitor.record_heartbeat(_heartbeat(rank))
    clock.now += 30
    assert monitor.hung_ranks() == []
    clock.now += 0.5
    assert [beat.rank for beat in monitor.hung_ranks()] == [0, 1]
    monitor.record_heartbeat(_heartbeat(0, limit_s=300.0))  # goes on, or may be silent for longer
    assert monitor.hung_ranks() == []
    monitor.mark_finished(0)
    assert [beat.rank for beat in monitor.hung_ranks()] == [1]


def test_dead_ranks_do_not_hang_however_long_the_next_attempt_takes_to_begin() -> None:
    clock = Clock()
    monitor = TrainingMonitor(clock)
    monitor.begin_attempt(0, 2)
    for rank in (0, 1):
        monitor.record_heartbeat(_heartbeat(rank))
    monitor.forget_ranks()  # after a death that the controller reported
    monitor.record_heartbeat(_heartbeat(0, step=2))  # sent before the rank was killed
    clock.now += 1000
    assert monitor.hung_ranks() == []
    assert not monitor.any_alive()
    monitor.record_heartbeat(replace(_heartbeat(0, step=2), pid=2000))  # the next attempt's
    assert monitor.any_alive()
    clock.now += 31
    assert [beat.pid for beat in monitor.hung_ranks()] == [2000]


def test_ranks_that_a_smaller_group_has_not_are_watched_no_more() -> None:
    clock = Clock()
    monitor = TrainingMonitor(clock)
    for rank in (0, 1):
        monitor.record_heartbeat(_heartbeat(rank))
    clock.now += 31
    monitor.begin_attempt(0, 1)
    assert [beat.rank for beat in monitor.hung_ranks()] == [0]


def test_attempts_that_come_no_further_are_counted_and_those_that_do_are_not() -> None:
    monitor = TrainingMonitor()
    assert [monitor.begin_attempt(0, 2), monitor.begin_attempt(1, 2)] == [0, 0]
    monitor.record_heartbeat(_heartbeat(0, step=5))
    assert monitor.begin_attempt(0, 2) == 0
    monitor.record_heartbeat(_heartbeat(0, step=5))  # from the checkpoint to where the last attempt died
    assert monitor.begin_attempt(0, 2) == 1
    assert monitor.begin_attempt(0, 2) == 2
    monitor.record_heartbeat(_heartbeat(0, step=6))
    assert monitor.begin_attempt(0, 2) == 0
    assert monitor.restart_stats().restarts == 4


def test_attempts_that_never_begin_are_counted_like_those_that_come_no_further() -> None:
    monitor = TrainingMonitor()
    assert [monitor.record_failed_start("no port"), monitor.record_failed_start("no port")] == [1, 2]
    assert monitor.last_exception() == "no port"
    assert monitor.begin_attempt(0, 2) == 2
    monitor.record_heartbeat(_heartbeat(0, step=1))
    assert monitor.record_failed_start("no controller") == 0  # the end of an attempt that came further
    assert monitor.record_failed_start("no port") == 1
    assert monitor.restart_stats().restarts == 0  # nothing that had begun began again


def test_goodput_is_the_share_of_steps_that_no_attempt_had_made_before() -> None:
    clock = Clock()
    goodput = Goodput(clock)
    for seconds, steps in ((10, (1, 2, 4)), (20, (2, 6))):  # the second goes on after step 1
        goodput.begin_attempt()
        clock.now += seconds  # until the first step is done
        for step in steps:
            goodput.record_step(step)
            clock.now += 5
    assert clock.now == 100 + 10 + 15 + 20 + 10
    assert goodput.fraction() == pytest.approx((5 + 5 + 5 * 2 / 4) / 55)


def _limits(seconds: Sequence[float], hang_s: float = 30.0) -> list[float]:
    """The limits of a rank's heartbeats: at its start, then after each of its steps, which take `seconds`."""
    clock = Clock()
    monitor = FakeMonitorClient()
    reporter = RankReporter(monitor, 0, "node", hang_s, clock)
    for step, duration in enumerate(seconds, 1):
        clock.now += duration
        reporter.heartbeat(step)
    reporter.close()
    return [beat.limit_s for beat in monitor.heartbeats]


def test_a_rank_is_watched_from_its_start_to_its_end() -> None:
    clock = Clock()
    monitor = FakeMonitorClient()
    reporter = RankReporter(monitor, 3, "node", 30.0, clock)
    reporter.report(Metrics(1, 4))  # only rank 0's are sent
    for step in (1, 2, 2, 3):  # a second for each, and one of waiting
        clock.now += 1
        reporter.heartbeat(step)
    clock.now += 0.1
    reporter.heartbeat(4)  # at most one heartbeat a second
    reporter.finishing()
    assert {(beat.rank, beat.pid, beat.node) for beat in monitor.heartbeats} == {(3, os.getpid(), "node")}
    assert [(beat.step, beat.limit_s) for beat in monitor.heartbeats] == [
        (-1, START_S),
        (1, 30),
        (2, 30),
        (2, 30),
        (3, 30),
        (4, END_S),
    ]
    assert monitor.monitor.any_alive()
    reporter.close()
    assert not monitor.monitor.any_alive()
    assert monitor.monitor.take_metrics() == []


def test_a_slow_training_may_be_silent_for_five_usual_steps_and_one_slow_step_is_not_usual() -> None:
    assert _limits((60, 12, 12, 300, 12))[2:] == [60, 60, 60, 60]


def test_steps_of_minutes_are_no_hang_and_end_the_patience() -> None:
    assert _limits((200, 100))[-1] == LONGEST_S
    assert _limits((200, 400))[-1] == 800


def test_after_the_first_step_the_time_to_it_stands_for_a_steps() -> None:
    assert [_limits((seconds,))[-1] for seconds in (2, 40, 400)] == [30, 200, 800]


def test_a_rank_whose_monitor_is_gone_ends() -> None:
    clock = Clock()
    monitor = FakeMonitorClient()
    reporter = RankReporter(monitor, 0, "node", 30.0, clock)
    monitor.pending = True
    clock.now += 2
    reporter.heartbeat(1)
    monitor.pending = False
    monitor.error = RuntimeError("the monitor is gone")
    clock.now += 2
    with pytest.raises(RuntimeError, match="the monitor is gone"):
        reporter.heartbeat(2)
    assert [beat.step for beat in monitor.heartbeats] == [-1, 1]


_AUTO_INIT = """
import ray
from pipelines.cluster.monitor import MonitorClient, TrainingMonitor
monitor = MonitorClient(None)
for call in (lambda: monitor.call(TrainingMonitor.any_alive), lambda: monitor.result(None)):
    try:
        call()
    except ConnectionError as error:
        print(error)
monitor.stop()
assert not ray.is_initialized()
"""


def test_no_call_of_the_monitor_starts_or_joins_a_ray(tmp_path: Path) -> None:
    """Not even where the address of a Ray that was killed is still on disk."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    found = subprocess.run(
        [sys.executable, "-c", _AUTO_INIT],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = "this process is no longer connected to Ray; run the same command again"
    assert found.stdout.splitlines() == [line] * 2


def test_quick_steps_are_watched_with_the_patience_that_was_asked_for() -> None:
    assert _limits((40, 6, 6), hang_s=30.0)[-1] == 30
    assert _limits((40, 2, 2), hang_s=2.0)[-1] == 10


def test_all_ranks_that_hang_are_killed_and_their_stacks_are_logged_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states = {0: ("S (sleeping), in futex", "File a.py in wait"), 1: ("out of reach (GetTimeoutError)", "")}

    def kill(heartbeats: Sequence[RankHeartbeat]) -> list[tuple[str, str]]:
        return [states[beat.rank] for beat in heartbeats]

    path = kill_hung_ranks([_heartbeat(1), _heartbeat(0)], "irm1", str(tmp_path), kill)
    kept = Path(path).read_text()
    assert kept == (
        "rank 0, process 1000 on node, 1 steps done: S (sleeping), in futex\nFile a.py in wait\n"
        "rank 1, process 1001 on node, 1 steps done: out of reach (GetTimeoutError)\n(no answer)"
    )
    assert (
        "irm1: no rank has given a sign for 30 s; all are ended, to go on from the newest checkpoint"
        in caplog.text
    )
    assert kept in caplog.text
    assert f"this is also in {path}" in caplog.text


def test_ranks_that_hang_are_killed_also_where_their_stacks_cannot_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "file"
    root.touch()
    assert (
        kill_hung_ranks(
            [_heartbeat(0)], "irm1", str(root), lambda heartbeats: [("S (sleeping)", "File a.py in wait")]
        )
        == ""
    )
    assert f"it could not be kept in {root}/hangs/irm1-" in caplog.text
    assert "File a.py in wait" in caplog.text


def test_a_group_that_is_gone_does_not_hang(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (
        kill_hung_ranks(
            [_heartbeat(0), _heartbeat(1)], "irm1", str(tmp_path), lambda heartbeats: [("gone", "")] * 2
        )
        == ""
    )
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_no_worker_of_rays_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        kill_worker(process.pid)
        assert dump_worker_stacks(process.pid, "") == ("gone", "")
        assert process.poll() is None
        process.communicate(b"\n")
    assert process.returncode == 0
    kill_worker(process.pid)
    assert dump_worker_stacks(process.pid, "") == ("gone", "")


_STOPPED = """
import os, signal
from pipelines.cluster.watchdog import RankReporter
from tests.pipelines.cluster.fake_monitor import FakeMonitorClient
monitor = FakeMonitorClient()
reporter = RankReporter(monitor, 0, "node", 30.0)
print(monitor.heartbeats[0].stacks_path, flush=True)
def stand_still():
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass
stand_still()
"""


def test_a_worker_that_was_stopped_writes_its_stacks_before_it_is_killed() -> None:
    with subprocess.Popen(
        ["ray::_run_rank", "-c", _STOPPED], executable=sys.executable, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        stacks_path = process.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while (
            "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text()
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        state, stacks = dump_worker_stacks(process.pid, stacks_path)
        kill_worker(process.pid)
        assert state.startswith("T (stopped), in ")
        assert "in stand_still" in stacks
    assert process.returncode == -9
