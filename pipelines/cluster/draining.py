"""Ctrl-C once: tasks that were begun are finished, and no other is begun; twice: the work stops at once."""

import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self, TypeVar

Task = TypeVar("Task")

_LINE = "diffbfr: finishing what was begun; Ctrl-C again stops at once\n"


class Draining:
    """A context in which the first Ctrl-C ends the tasks, and the work with a KeyboardInterrupt at its end.

    It changes nothing outside the main thread, or where somebody else handles or ignores the signal.
    """

    def __init__(self) -> None:
        self._requested = False
        self._installed = False

    def __enter__(self) -> Self:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def until_requested(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """Yield the tasks until Ctrl-C."""
        while not self._requested:
            try:
                task = next(tasks)
            except StopIteration:
                return
            yield task

    def check(self) -> None:
        """KeyboardInterrupt if Ctrl-C ended the tasks."""
        if self._requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        sys.stderr.write(_LINE)
        sys.stderr.flush()
