"""What is told arrives in order and once, whenever the server is there; nobody waits for it."""

import threading
import time

from pipelines.flows.teller import Teller


def test_calls_arrive_in_order_and_nobody_waits() -> None:
    heard: list[int] = []
    gate = threading.Event()
    teller = Teller()
    teller.tell(lambda: bool(gate.wait(30)) or None)
    started = time.thread_time()
    for number in range(1000):
        teller.tell(lambda number=number: heard.append(number))  # type: ignore[misc]
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

    teller = Teller(on_away=lambda error: said.append(str(error)), pause_s=0.01)
    teller.tell(call)
    teller.tell(lambda: heard.append("next"))
    assert teller.close()
    assert heard == ["call", "next"]
    assert said == ["away"]


def test_what_is_refused_is_left_out() -> None:
    heard: list[str] = []

    def refused() -> None:
        raise ValueError

    teller = Teller(is_refused=lambda error: isinstance(error, ValueError), pause_s=0.01)
    teller.tell(refused)
    teller.tell(lambda: heard.append("next"))
    assert teller.close()
    assert heard == ["next"]


def test_a_server_that_stays_away_is_given_up_at_the_end() -> None:
    def away() -> None:
        raise ConnectionError

    teller = Teller(pause_s=0.01)
    teller.tell(away)
    assert not teller.close(patience_s=0.1)


def test_the_pulse_beats_while_there_is_nothing_to_tell() -> None:
    beats = threading.Semaphore(0)
    teller = Teller(pulse=beats.release, pulse_s=0.01)
    assert beats.acquire(timeout=30)
    assert beats.acquire(timeout=30)
    assert teller.close()
