"""Calls are made in order and once, as soon as the server is reachable, and the caller does not wait."""

import threading
import time

from pipelines.tracking.outbox import Outbox


def test_calls_are_made_in_order_and_the_caller_does_not_wait() -> None:
    made: list[int] = []
    gate = threading.Event()
    outbox = Outbox()
    outbox.enqueue(lambda: bool(gate.wait(30)) or None)
    started = time.thread_time()
    for number in range(1000):
        outbox.enqueue(lambda number=number: made.append(number))  # type: ignore[misc]
    assert made == []
    assert time.thread_time() - started < 0.5
    gate.set()
    assert outbox.close()
    assert made == list(range(1000))


def test_a_failed_call_is_retried_and_reported_once() -> None:
    made, reported, faults = list[str](), list[str](), [ConnectionError("away")] * 3

    def call() -> None:
        if faults:
            raise faults.pop()
        made.append("call")

    outbox = Outbox(on_away=lambda error: reported.append(str(error)), pause_s=0.01)
    outbox.enqueue(call)
    outbox.enqueue(lambda: made.append("next"))
    assert outbox.close()
    assert made == ["call", "next"]
    assert reported == ["away"]


def test_a_refused_call_is_dropped() -> None:
    made: list[str] = []

    def refused() -> None:
        raise ValueError

    outbox = Outbox(is_refused=lambda error: isinstance(error, ValueError), pause_s=0.01)
    outbox.enqueue(refused)
    outbox.enqueue(lambda: made.append("next"))
    assert outbox.close()
    assert made == ["next"]


def test_close_gives_up_on_a_server_that_stays_away() -> None:
    def away() -> None:
        raise ConnectionError

    outbox = Outbox(pause_s=0.01)
    outbox.enqueue(away)
    assert not outbox.close(patience_s=0.1)


def test_ticks_come_while_nothing_is_pending() -> None:
    ticks = threading.Semaphore(0)
    outbox = Outbox(on_tick=ticks.release, tick_s=0.01)
    assert ticks.acquire(timeout=30)
    assert ticks.acquire(timeout=30)
    assert outbox.close()


def test_ticks_come_while_something_is_always_pending() -> None:
    ticks, ending = threading.Semaphore(0), threading.Event()
    outbox = Outbox(on_tick=ticks.release, tick_s=0.01)

    def call() -> None:
        if not ending.is_set():
            outbox.enqueue(call)

    outbox.enqueue(call)
    ticked = [ticks.acquire(timeout=10) for _ in range(2)]
    ending.set()
    assert ticked == [True, True]
    assert outbox.close()


def test_a_failing_tick_is_reported_once_not_retried_and_delays_no_call() -> None:
    made, reported, ticks = list[str](), list[str](), threading.Semaphore(0)

    def tick() -> None:
        ticks.release()
        raise ConnectionError("away")

    outbox = Outbox(
        on_tick=tick, on_away=lambda error: reported.append(str(error)), tick_s=0.01, pause_s=1000
    )
    assert all(ticks.acquire(timeout=10) for _ in range(3))
    assert reported == ["away"]
    outbox.enqueue(lambda: made.append("call"))
    assert outbox.close()
    assert made == ["call"]
