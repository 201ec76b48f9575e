"""Tasks that hang: a worker that was stopped, and a task that takes far longer than the others.

Ray replaces workers that die, but waits for ever for one that does nothing. Here such a worker is ended, so
that it is replaced and its task retried as after any death. The ranks of a training have a watch of their own
(`pipelines.cluster.watchdog`).
"""

import contextlib
import faulthandler
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pipelines.cluster import orphans

_NUM_LONGEST: Final = 5.0
_INTERVAL_S: Final = 2.0
"""Between two looks at the processes of this machine."""
_logger = logging.getLogger(__name__)


class HangWatch:
    """Finds the tasks of one piece of work that hang; `check` is called while the driver waits.

    A worker of our own Ray that is stopped for `stopped_s` is killed. A task is `overdue` after `limit_s`, or
    after five times as long as the longest task that has ended, if that is longer.
    """

    def __init__(
        self,
        label: str,
        stopped_s: float = math.inf,
        limit_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._stopped_s = stopped_s
        self.limit_s = limit_s
        self._clock = clock
        self._longest_s = 0.0
        self._started: dict[int, float] = {}
        self._stopped_since: dict[tuple[int, str], float] = {}
        self._next_look = clock()

    def begin(self, position: int) -> None:
        """Start the clock of a task, by its position, when a worker that is free gets it."""
        self._started[position] = self._clock()

    def end(self, position: int) -> None:
        """Stop the clock of a task that has a report or an error of its own."""
        started = self._started.pop(position, None)
        if started is not None:  # an overdue one shows no usual time
            self._longest_s = max(self._longest_s, self._clock() - started)

    def overdue(self) -> list[int]:
        """Return the positions of the tasks that take too long, say so, and stop their clocks."""
        now, limit_s = self._clock(), max(self.limit_s, _NUM_LONGEST * self._longest_s)
        late = [position for position, started in self._started.items() if now - started > limit_s]
        for position in late:
            del self._started[position]
            _logger.warning(
                "%s: a task has not ended after %.0f s; its worker is replaced and the task retried; if "
                "tasks may take so long, raise cluster.task_limit_s",
                self._label,
                limit_s,
            )
        return late

    def check(self) -> None:
        """Kill the workers that have been stopped for too long."""
        now = self._clock()
        if now < self._next_look or math.isinf(self._stopped_s):
            return
        self._next_look = now + _INTERVAL_S
        found = {(pid, orphans.process_identity(pid)) for pid in _stopped_workers()}
        self._stopped_since = {worker: self._stopped_since.get(worker, now) for worker in found}
        for (pid, _), since in self._stopped_since.items():
            if now - since >= self._stopped_s:
                _logger.warning(
                    "%s: worker process %d has been stopped for %.0f s; it is ended, to be replaced, and its "
                    "task retried",
                    self._label,
                    pid,
                    now - since,
                )
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """End this process, with the stacks of its threads in its log, if the block takes longer."""
    if math.isinf(limit_s):
        yield
        return
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _stopped_workers() -> list[int]:
    """PIDs of the workers of this driver's own Ray that are stopped by a signal; none without `/proc`."""
    stopped = {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_stopped_worker(entry)}
    if not stopped:  # reading the environment of every process takes longer
        return []
    own = orphans.process_identity(os.getpid())
    marked = {pid for pid, _ in orphans.find_processes(lambda driver: driver == own)}
    return sorted(stopped & marked)


def _is_stopped_worker(process: Path) -> bool:
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state in "Tt" and b"ray::" in (process / "cmdline").read_bytes()
    except OSError:
        return False
