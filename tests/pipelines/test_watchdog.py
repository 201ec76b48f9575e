"""A hang is a silence of all ranks; whoever does not even answer is ended, and what each was doing is kept."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.cluster import watchdog
from pipelines.cluster.link import Board, Pulse
from pipelines.cluster.watchdog import RankLink, end_hung, kill_worker
from pipelines.progress import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _pulse(rank: int, step: int = 1, limit_s: float = 30.0, stacks: str = "") -> Pulse:
    return Pulse(rank, 1000 + rank, "node", step, limit_s, stacks=stacks)


def test_a_hang_is_a_silence_of_all_ranks() -> None:
    clock = Clock()
    board = Board(clock)
    assert board.hung(0) == []
    for rank in (0, 1):
        board.beat(_pulse(rank))
    clock.now += 32
    assert board.hung(3) == []
    clock.now += 2
    assert [pulse.rank for pulse in board.hung(3)] == [0, 1]
    board.beat(_pulse(0, limit_s=300.0))  # goes on, or may be silent for longer
    assert board.hung(3) == []
    board.rest(0)
    assert [pulse.rank for pulse in board.hung(3)] == [1]
    board.forget()
    assert board.hung(3) == []


def test_attempts_that_come_no_further_are_counted_and_those_that_do_are_not() -> None:
    board = Board()
    assert [board.begin(0), board.begin(1)] == [0, 0]
    board.beat(_pulse(0, step=5))
    assert board.begin(0) == 0
    board.beat(_pulse(0, step=5))  # from the checkpoint to where the last attempt died
    assert board.begin(0) == 1
    assert board.begin(0) == 2
    board.beat(_pulse(0, step=6))
    assert board.begin(0) == 0


class FakeBoard:
    """Keeps what a rank would send."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> object:
        calls = self.calls

        class Method:
            @staticmethod
            def remote(*given: object) -> None:
                calls.append((name, given))

        return Method


def test_a_silent_rank_tells_where_its_threads_are_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_BEAT_S", 0.01)
    board = FakeBoard()
    link = RankLink(board, 3, "node", hang_s=0.2)
    link.post(Metrics(1, 4))  # only rank 0's are sent
    link.alive(1)
    link.alive(2)
    ((name, (pulse,)), *_rest) = board.calls
    assert name == "beat"
    assert isinstance(pulse, Pulse)
    assert (pulse.rank, pulse.pid, pulse.step) == (3, os.getpid(), 1)
    deadline = time.monotonic() + 30
    while not any(name == "tell_stacks" for name, _ in board.calls) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    told = [given for name, given in board.calls if name == "tell_stacks"]
    assert len(told) == 1
    assert told[0][0] == 3
    assert "test_a_silent_rank_tells_where_its_threads_are_once" in str(told[0][1])
    link.rest()
    assert board.calls[-1] == ("rest", (3,))


def test_a_slow_training_may_be_silent_for_ten_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock()
    monkeypatch.setattr(watchdog.time, "monotonic", now)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    board = FakeBoard()
    link = RankLink(board, 0, "node", hang_s=30.0)
    for step, seconds in enumerate((0.0, 12.0, 2.0)):
        now.now += seconds
        link.alive(step)
    assert [given[0].limit_s for _, given in board.calls] == [30.0, 120.0, 120.0]  # type: ignore[attr-defined]


def test_only_ranks_that_do_not_answer_are_ended_unless_all_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []

    def end(pulse: Pulse) -> str:
        ended.append(pulse.rank)
        return "T (stopped), in do_signal_stop"

    place = end_hung([_pulse(0, stacks="File a.py in wait"), _pulse(1)], "irm1", str(tmp_path), end)
    assert ended == [1]
    assert "ending rank 1 (T (stopped), in do_signal_stop) to go on" in caplog.text
    told = Path(place).read_text()
    assert "rank 0, process 1000 on node: waiting\nFile a.py in wait" in told
    assert "rank 1, process 1001 on node: T (stopped), in do_signal_stop\n(no answer)" in told
    end_hung([_pulse(0, stacks="a"), _pulse(1, stacks="b")], "irm1", str(tmp_path), end)
    assert ended == [1, 0, 1]


def test_a_process_that_is_no_worker_of_rays_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert kill_worker(process.pid) == "gone"
        assert process.poll() is None
        process.communicate(b"\n")
    assert process.returncode == 0
    assert kill_worker(process.pid) == "gone"


def test_a_worker_is_killed_even_when_it_is_stopped() -> None:
    with subprocess.Popen(
        ["ray::_rank", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"], executable=sys.executable
    ) as process:
        deadline = time.monotonic() + 30
        while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert kill_worker(process.pid).startswith("T (stopped), in ")
    assert process.returncode == -9
