"""Writes checkpoints and averages on a thread while the training goes on, one at a time and in order."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, Self

STALL_TIMEOUT_S: Final = 600.0
"""A write that takes longer sends no more heartbeats, so that a watchdog can end the rank."""
_HEARTBEAT_S: Final = 1.0


class AsyncCheckpointWriter:
    """A thread that writes checkpoints and averages; a context manager that ends when everything is written.

    At most one write is in progress. A second `write` blocks until it is done, calling `while_waiting` every
    second for at most `STALL_TIMEOUT_S`. A write must hold copies, because training changes its tensors
    meanwhile. An error of a write (a full disk, a refused upload, NaN) is raised by the next call of `check`
    or `write`, or at the end of the context.
    """

    def __init__(
        self, on_checkpoint: Callable[[Path], None], while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        self._on_checkpoint = on_checkpoint
        self._while_waiting = while_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="diffbfr-writer")
        self._in_progress: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if kind is None:
            self._wait()
        self._thread.shutdown(wait=True)

    def write(self, save: Callable[[], Path]) -> None:
        """Run `save` on the thread, and pass the path that it returns to `on_checkpoint`."""
        self._wait()
        self._in_progress = self._thread.submit(lambda: self._on_checkpoint(save()))

    def check(self) -> None:
        """Raise the error of a write that has failed; does not block."""
        if self._in_progress is not None and self._in_progress.done():
            self._wait()

    def _wait(self) -> None:
        if self._in_progress is not None:
            started = time.monotonic()
            while wait([self._in_progress], _HEARTBEAT_S).not_done:
                if time.monotonic() - started < STALL_TIMEOUT_S:
                    self._while_waiting()
            finished = self._in_progress
            self._in_progress = None
            finished.result()
