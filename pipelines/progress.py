"""Progress lines on standard error: done / total, rate, time left, and a few facts such as the loss.

A terminal shows a line that is redrawn, or several where works run in parallel. A log file gets a plain line
every few seconds.
"""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self, TextIO

from diffbfr.text import shown

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Fact = float | int | str

_PLAIN_INTERVAL_S = 5.0
_RATE_WINDOW_S = 30.0
_MINUTE_S, _HOUR_S = 60, 3600


class Progress:
    """The progress line of one work; a context manager that writes the last state at its end.

    `done` is where a resumed run starts, so that work of an earlier run does not count in the rate.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "items",
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = done
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._facts: dict[str, Fact] = {}
        self._start = clock()
        self._marks = deque([(self._start, done)])
        self._written_at: float | None = None
        self._written_done: int | None = None
        self._live: _Live | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._live = _Live(self._stream, self)
        else:
            self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.draw(self)
            self._live.close()
        elif self.done != self._written_done:
            self._write()

    def advance(self, num: int = 1, **facts: Fact) -> None:
        """Add `num` to what is done, and update the facts that the line shows."""
        self.to(self.done + num, **facts)

    def to(self, done: int, **facts: Fact) -> None:
        """Set what is done, for workers that report a position, and update the facts that the line shows."""
        now = self._clock()
        if done < self.done:  # a retried attempt starts further back
            self._marks.clear()
        self.done = done
        self._facts.update(facts)
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_WINDOW_S:
            self._marks.popleft()
        if self._live is not None:
            self._live.draw(self)
        elif self._written_at is None or now - self._written_at >= _PLAIN_INTERVAL_S:
            self._write()

    def rate(self) -> float | None:
        """Units per second over the last half minute; None before anything is done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if after > before and end > start else None

    def line(self) -> str:
        """The line, such as `shard 12/40  3.1 img/s  9 s left`."""
        rate = self.rate()
        parts = [f"{self.label} {self.done}/{self.total}"]
        if rate is not None:
            parts.append(f"{rate:.3g} {self.unit}/s")
        for name, value in self._facts.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        if self.done >= self.total:
            parts.append(f"done in {duration(self._clock() - self._start)}")
        elif rate is not None:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return shown("  ".join(parts))

    def _write(self) -> None:
        self._written_at = self._clock()
        self._written_done = self.done
        self._stream.write(self.line() + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as text, such as `9 s`, `4 min 05 s`, `2 h 03 min`."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02d} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02d} min"


class _Live:
    """A line on a terminal; lines that exist at the same time are drawn together until the last ends."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _drawn: ClassVar[dict[TextIO, "RichProgress"]] = {}
    _open: ClassVar[Counter[TextIO]] = Counter()

    def __init__(self, stream: TextIO, progress: Progress) -> None:
        self._stream = stream
        with self._lock:
            if not self._open[stream]:
                self._drawn[stream] = _make_rich_progress(stream)
                self._drawn[stream].start()
            self._open[stream] += 1
            self._rich = self._drawn[stream]
        self._line: TaskID = self._rich.add_task(
            shown(progress.label), total=progress.total, completed=progress.done, text=progress.line()
        )

    def draw(self, progress: Progress) -> None:
        self._rich.update(self._line, completed=progress.done, text=progress.line())

    def close(self) -> None:
        with self._lock:
            self._open[self._stream] -= 1
            if not self._open[self._stream]:
                self._drawn.pop(self._stream).stop()


def _make_rich_progress(stream: TextIO) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(file=getattr(stream, "terminal", stream)),  # the escapes written here are rich's own
        transient=False,
    )
