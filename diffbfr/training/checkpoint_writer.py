"""Writes what a training keeps while the training goes on: one piece at a time, in order, on a thread;
failures come back.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, Self

PATIENCE_S: Final = 600.0
_SIGN_S: Final = 1.0


class AsyncCheckpointWriter:
    """A thread for checkpoints and averages; a context manager, at whose end everything is written.

    A piece must hold copies of its own: the training changes its tensors meanwhile. At most one piece is
    under way: who is faster waits for it, and calls `while_waiting` every second, for `PATIENCE_S`: after
    that whoever listens shall take it for hung. What a piece raises (a full disk, a refused upload, NaN) is
    raised by the next call of `check` or `write`, or at the end.
    """

    def __init__(
        self, on_checkpoint: Callable[[Path], None], while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        self._sealed, self._while_waiting = on_checkpoint, while_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="diffbfr-writer")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if kind is None:
            self._wait()
        self._thread.shutdown(wait=True)

    def write(self, piece: Callable[[], Path]) -> None:
        """Make a piece on the thread, and tell the path that it returns."""
        self._wait()
        self._under_way = self._thread.submit(lambda: self._sealed(piece()))

    def check(self) -> None:
        """Raise what the piece under way has raised already; costs nothing."""
        if self._under_way is not None and self._under_way.done():
            self._wait()

    def _wait(self) -> None:
        if self._under_way is not None:
            started = time.monotonic()
            while wait([self._under_way], _SIGN_S).not_done:
                if time.monotonic() - started < PATIENCE_S:
                    self._while_waiting()
            done, self._under_way = self._under_way, None
            done.result()
