"""A hang is a silence of all ranks; all are then ended, and what each was doing is logged."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.cluster.monitor import Goodput, RankHeartbeat, TrainingMonitor
from pipelines.cluster.watchdog import (
    END_S,
    LONGEST_S,
    START_S,
    RankReporter,
    dump_worker_stacks,
    kill_hung_ranks,
    kill_worker,
)
from pipelines.progress import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _pulse(rank: int, step: int = 1, limit_s: float = 30.0) -> RankHeartbeat:
    return RankHeartbeat(rank, 1000 + rank, "node", step, limit_s)


def test_a_hang_is_a_silence_of_all_ranks() -> None:
    clock = Clock()
    board = TrainingMonitor(clock)
    assert board.hung() == []
    for rank in (0, 1):
        board.beat(_pulse(rank))
    clock.now += 30
    assert board.hung() == []
    clock.now += 0.5
    assert [pulse.rank for pulse in board.hung()] == [0, 1]
    board.beat(_pulse(0, limit_s=300.0))  # goes on, or may be silent for longer
    assert board.hung() == []
    board.rest(0)
    assert [pulse.rank for pulse in board.hung()] == [1]


def test_the_dead_do_not_hang_however_long_the_next_attempt_takes_to_begin() -> None:
    clock = Clock()
    board = TrainingMonitor(clock)
    board.begin(0, 2)
    for rank in (0, 1):
        board.beat(_pulse(rank))
    board.forget()  # what the controller says of a death
    board.beat(_pulse(0, step=2))  # a rank's last word, on its way when it was ended
    clock.now += 1000
    assert board.hung() == []
    assert not board.lives()
    board.beat(replace(_pulse(0, step=2), pid=2000))  # the next attempt's
    assert board.lives()
    clock.now += 31
    assert [pulse.pid for pulse in board.hung()] == [2000]


def test_ranks_that_a_smaller_group_has_not_are_watched_no_more() -> None:
    clock = Clock()
    board = TrainingMonitor(clock)
    for rank in (0, 1):
        board.beat(_pulse(rank))
    clock.now += 31
    board.begin(0, 1)
    assert [pulse.rank for pulse in board.hung()] == [0]


def test_attempts_that_come_no_further_are_counted_and_those_that_do_are_not() -> None:
    board = TrainingMonitor()
    assert [board.begin(0, 2), board.begin(1, 2)] == [0, 0]
    board.beat(_pulse(0, step=5))
    assert board.begin(0, 2) == 0
    board.beat(_pulse(0, step=5))  # from the checkpoint to where the last attempt died
    assert board.begin(0, 2) == 1
    assert board.begin(0, 2) == 2
    board.beat(_pulse(0, step=6))
    assert board.begin(0, 2) == 0
    assert board.restart_stats().restarts == 4


def test_attempts_that_never_begin_are_counted_like_those_that_come_no_further() -> None:
    board = TrainingMonitor()
    assert [board.record_failed_start("no port"), board.record_failed_start("no port")] == [1, 2]
    assert board.failure() == "no port"
    assert board.begin(0, 2) == 2
    board.beat(_pulse(0, step=1))
    assert board.record_failed_start("no controller") == 0  # the end of an attempt that came further
    assert board.record_failed_start("no port") == 1
    assert board.restart_stats().restarts == 0  # nothing that had begun began again


def test_goodput_is_the_share_of_steps_that_no_attempt_had_made_before() -> None:
    clock = Clock()
    goodput = Goodput(clock)
    for seconds, steps in ((10, (1, 2, 4)), (20, (2, 6))):  # the second goes on after step 1
        goodput.begin()
        clock.now += seconds  # until the first step is done
        for step in steps:
            goodput.step(step)
            clock.now += 5
    assert clock.now == 100 + 10 + 15 + 20 + 10
    assert goodput.fraction() == pytest.approx((5 + 5 + 5 * 2 / 4) / 55)


class FakeBoard:
    """Keeps what a rank would send."""

    def __init__(self) -> None:
        self.pulses: list[RankHeartbeat] = []
        self.posts: list[Metrics] = []
        self.rests: list[int] = []
        self.beat, self.post, self.rest = (
            SimpleNamespace(remote=kept.append)
            for kept in (self.pulses, self.posts, self.rests)  # type: ignore[attr-defined]
        )


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    """One that has not answered yet."""
    monkeypatch.setattr("ray.wait", lambda answers, num_returns, timeout: ([], answers))
    return FakeBoard()


def _limits(board: FakeBoard, seconds: Sequence[float], hang_s: float = 30.0) -> list[float]:
    """How long a rank may be silent after each of its steps, of which the first ends with the start."""
    clock = Clock()
    link = RankReporter(board, 0, "node", hang_s, clock)
    for step, duration in enumerate(seconds, 1):
        clock.now += duration
        link.heartbeat(step)
    link.close()
    return [pulse.limit_s for pulse in board.pulses]


def test_a_rank_is_watched_from_its_start_to_its_end(board: FakeBoard) -> None:
    clock = Clock()
    link = RankReporter(board, 3, "node", 30.0, clock)
    link.report(Metrics(1, 4))  # only rank 0's are sent
    for step in (1, 2, 2, 3):  # a second for each, and one of waiting
        clock.now += 1
        link.heartbeat(step)
    clock.now += 0.1
    link.heartbeat(4)  # at most one beat a second
    link.finishing()
    assert board.posts == []
    assert {(pulse.rank, pulse.pid, pulse.node) for pulse in board.pulses} == {(3, os.getpid(), "node")}
    assert [(pulse.step, pulse.limit_s) for pulse in board.pulses] == [
        (-1, START_S),
        (1, 30),
        (2, 30),
        (2, 30),
        (3, 30),
        (4, END_S),
    ]
    link.close()
    assert board.rests == [3]


def test_a_slow_training_may_be_silent_for_five_usual_steps_and_one_slow_step_is_not_usual(
    board: FakeBoard,
) -> None:
    assert _limits(board, (60, 12, 12, 300, 12))[2:] == [60, 60, 60, 60]


def test_steps_of_minutes_are_no_hang_and_end_the_patience(board: FakeBoard) -> None:
    assert _limits(board, (200, 100))[-1] == LONGEST_S
    assert _limits(board, (200, 400))[-1] == 800


def test_after_the_first_step_the_time_to_it_stands_for_a_steps(board: FakeBoard) -> None:
    assert [_limits(board, (seconds,))[-1] for seconds in (2, 40, 400)] == [30, 200, 800]


def test_a_rank_that_nobody_hears_any_more_ends(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answers: Sequence[object]) -> None:
        if answers:
            raise RuntimeError("the board is gone")

    clock = Clock()
    link = RankReporter(board, 0, "node", 30.0, clock)
    monkeypatch.setattr("ray.get", get)
    clock.now += 2
    link.heartbeat(1)
    monkeypatch.setattr("ray.wait", lambda answers, num_returns, timeout: (answers, []))
    clock.now += 2
    with pytest.raises(RuntimeError, match="the board is gone"):
        link.heartbeat(2)
    assert [pulse.step for pulse in board.pulses] == [-1, 1]


def test_quick_steps_are_watched_with_the_patience_that_was_asked_for(board: FakeBoard) -> None:
    assert _limits(board, (40, 6, 6), hang_s=30.0)[-1] == 30
    assert _limits(board, (40, 2, 2), hang_s=2.0)[-1] == 10


def test_all_ranks_that_hang_are_ended_and_where_they_were_is_logged_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def end(pulses: Sequence[RankHeartbeat]) -> list[tuple[str, str]]:
        told = {0: ("S (sleeping), in futex", "File a.py in wait"), 1: ("out of reach (GetTimeoutError)", "")}
        return [told[pulse.rank] for pulse in pulses]

    place = kill_hung_ranks([_pulse(1), _pulse(0)], "irm1", str(tmp_path), end)
    kept = Path(place).read_text()
    assert kept == (
        "rank 0, process 1000 on node, 1 steps done: S (sleeping), in futex\nFile a.py in wait\n"
        "rank 1, process 1001 on node, 1 steps done: out of reach (GetTimeoutError)\n(no answer)"
    )
    assert (
        "irm1: no rank has given a sign for 30 s; all are ended, to go on from the newest checkpoint"
        in caplog.text
    )
    assert kept in caplog.text
    assert f"this is also in {place}" in caplog.text


def test_ranks_that_hang_are_ended_also_where_nothing_can_be_kept_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "file"
    root.touch()
    assert (
        kill_hung_ranks(
            [_pulse(0)], "irm1", str(root), lambda pulses: [("S (sleeping)", "File a.py in wait")]
        )
        == ""
    )
    assert f"it could not be kept in {root}/hangs/irm1-" in caplog.text
    assert "File a.py in wait" in caplog.text


def test_a_group_that_is_gone_does_not_hang(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (
        kill_hung_ranks([_pulse(0), _pulse(1)], "irm1", str(tmp_path), lambda pulses: [("gone", "")] * 2)
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
from types import SimpleNamespace
from pipelines.cluster.watchdog import RankReporter
board = SimpleNamespace(beat=SimpleNamespace(remote=lambda pulse: print(pulse.stacks, flush=True)))
link = RankReporter(board, 0, "node", 30.0)
def stand_still():
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass
stand_still()
"""


def test_a_worker_that_was_stopped_tells_where_it_was_before_it_is_killed() -> None:
    with subprocess.Popen(
        ["ray::_rank", "-c", _STOPPED], executable=sys.executable, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        stacks = process.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while (
            "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text()
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        state, told = dump_worker_stacks(process.pid, stacks)
        kill_worker(process.pid)
        assert state.startswith("T (stopped), in ")
        assert "in stand_still" in told
    assert process.returncode == -9
