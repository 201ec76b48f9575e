"""What is told arrives in order and once, whenever the server is there; nobody waits for it."""

import threading
import time

from pipelines.tracking.outbox import Outbox


def test_calls_arrive_in_order_and_nobody_waits() -> None:
    heard: list[int] = []
    gate = threading.Event()
    teller = Outbox()
    teller.enqueue(lambda: bool(gate.wait(30)) or None)
    started = time.thread_time()
    for number in range(1000):
        teller.enqueue(lambda number=number: heard.append(number))  # type: ignore[misc]
    assert heard == []
    assert time.thread_time() - started < 0.5
    gate.set()
    assert teller.close()
    assert heard == list(range(1000))


def test_what_failed_is_told_again_and_said_once() -> None:
    heard, said, faults = list[str](), list[str](), [ConnectionError("away")] * 3

    def call() -> None:
        if faults:
            raise faults.pop()
        heard.append("call")

    teller = Outbox(on_away=lambda error: said.append(str(error)), pause_s=0.01)
    teller.enqueue(call)
    teller.enqueue(lambda: heard.append("next"))
    assert teller.close()
    assert heard == ["call", "next"]
    assert said == ["away"]


def test_what_is_refused_is_left_out() -> None:
    heard: list[str] = []

    def refused() -> None:
        raise ValueError

    teller = Outbox(is_refused=lambda error: isinstance(error, ValueError), pause_s=0.01)
    teller.enqueue(refused)
    teller.enqueue(lambda: heard.append("next"))
    assert teller.close()
    assert heard == ["next"]


def test_a_server_that_stays_away_is_given_up_at_the_end() -> None:
    def away() -> None:
        raise ConnectionError

    teller = Outbox(pause_s=0.01)
    teller.enqueue(away)
    assert not teller.close(patience_s=0.1)


def test_the_pulse_beats_while_there_is_nothing_to_tell() -> None:
    beats = threading.Semaphore(0)
    teller = Outbox(on_tick=beats.release, tick_s=0.01)
    assert beats.acquire(timeout=30)
    assert beats.acquire(timeout=30)
    assert teller.close()


def test_the_pulse_beats_also_while_there_is_always_something_to_tell() -> None:
    beats, ending = threading.Semaphore(0), threading.Event()
    teller = Outbox(on_tick=beats.release, tick_s=0.01)

    def call() -> None:
        if not ending.is_set():
            teller.enqueue(call)

    teller.enqueue(call)
    beaten = [beats.acquire(timeout=10) for _ in range(2)]
    ending.set()
    assert beaten == [True, True]
    assert teller.close()


def test_a_pulse_that_fails_is_said_once_not_repeated_and_keeps_nobody_waiting() -> None:
    heard, said, beats = list[str](), list[str](), threading.Semaphore(0)

    def pulse() -> None:
        beats.release()
        raise ConnectionError("away")

    teller = Outbox(on_tick=pulse, on_away=lambda error: said.append(str(error)), tick_s=0.01, pause_s=1000)
    assert all(beats.acquire(timeout=10) for _ in range(3))
    assert said == ["away"]
    teller.enqueue(lambda: heard.append("call"))
    assert teller.close()
    assert heard == ["call"]
