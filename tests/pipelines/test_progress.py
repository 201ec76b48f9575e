"""The progress line shows done / total, rate and time left, on a terminal and in a log."""

import io

from pipelines.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_shows_done_total_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress("shard", 40, "img", stream=io.StringIO(), clock=clock)
    clock.now += 4
    progress.advance(12)
    assert progress.line() == "shard 12/40  3 img/s  9 s left"


def test_facts_are_shown_and_replaced() -> None:
    clock = Clock()
    progress = Progress("irm1", 100, stream=io.StringIO(), clock=clock)
    progress.advance(1, loss=0.51234567, step=1)
    progress.advance(1, loss=0.25)
    assert progress.line() == "irm1 2/100  loss 0.25  step 1"


def test_a_log_gets_a_line_at_the_start_every_five_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("shard", 100, "img", stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.now += 0.125
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "shard 0/100",
        "shard 40/100  8 img/s  8 s left",
        "shard 80/100  8 img/s  2 s left",
        "shard 100/100  8 img/s  done in 12 s",
    ]


def test_work_of_an_earlier_run_does_not_count_in_the_rate() -> None:
    clock = Clock()
    progress = Progress("train", 1000, "img", done=900, stream=io.StringIO(), clock=clock)
    clock.now += 10
    progress.to(910)
    assert progress.rate() == 1.0


def test_the_rate_follows_the_last_half_minute() -> None:
    clock = Clock()
    progress = Progress("train", 10_000, "img", stream=io.StringIO(), clock=clock)
    clock.now += 1000  # a slow start, such as loading a model
    progress.to(1)
    for _ in range(60):
        clock.now += 1
        progress.advance(5)
    assert progress.rate() == 5.0


def test_a_retried_attempt_may_go_back() -> None:
    clock = Clock()
    progress = Progress("train", 100, "img", stream=io.StringIO(), clock=clock)
    clock.now += 1
    progress.to(50)
    clock.now += 1
    progress.to(40)
    assert progress.rate() is None
    clock.now += 2
    progress.to(44)
    assert progress.rate() == 2.0


def test_a_terminal_shows_the_last_state_and_ends_its_line() -> None:
    stream = Terminal()
    with Progress("shard", 3, "img", stream=stream) as progress:
        progress.advance(3, note="[not markup]")
    assert "shard 3/3" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()
    assert stream.getvalue().endswith(("\n", "\x1b[?25h"))


def test_lines_side_by_side_share_a_terminal_until_the_last_ends() -> None:
    stream = Terminal()
    with Progress("tem", 2, "img", stream=stream) as longer:
        with Progress("irm1", 3, "img", stream=stream) as shorter:
            shorter.advance(3)
            longer.advance(1)
        assert not stream.getvalue().endswith("\x1b[?25h")
        longer.advance(1)
    assert stream.getvalue().endswith("\x1b[?25h")
    last = stream.getvalue().splitlines()[-3:]
    assert "irm1 3/3" in "".join(last)
    assert "tem 2/2" in "".join(last)


def test_durations_read_as_text() -> None:
    assert [duration(seconds) for seconds in (0.2, 9, 59.6, 245, 7380)] == [
        "0 s",
        "9 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 03 min",
    ]
