"""Tasks that hang: a worker that was stopped, and a task that takes far longer than the others.

Such a worker is ended, so that it is replaced and its task retried as after any death. The ranks of a
training have a watch of their own (`pipelines.cluster.watchdog`).
"""

import contextlib
import faulthandler
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from pipelines.cluster.node_watch import NodeWatches
from pipelines.cluster.stopped import StoppedWorkers, stopped_workers_of_own_ray

_NUM_LONGEST: Final = 5.0
_logger = logging.getLogger(__name__)


class HangWatch:
    """Finds the tasks of one piece of work that hang; `check` is called while the driver waits.

    A worker that is stopped for `stopped_s` is killed, on every node with `on_nodes`, else on this machine. A
    task is `overdue` after `limit_s`, or after five times as long as the longest task that has ended, if that
    is longer. A context manager, which ends what watches the nodes.
    """

    def __init__(
        self,
        label: str,
        stopped_s: float = math.inf,
        limit_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        on_nodes: bool = False,
    ) -> None:
        self._label = label
        self.limit_s = limit_s
        self._clock = clock
        self._longest_s = 0.0
        self._started: dict[int, float] = {}
        self._nodes = NodeWatches(label, stopped_s, clock) if on_nodes else None
        self._stopped = StoppedWorkers(stopped_s, stopped_workers_of_own_ray, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._nodes is not None:
            self._nodes.close()

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
        if self._nodes is not None:
            self._nodes.check()
            return
        for pid, seconds in self._stopped.kill():
            _logger.warning(
                "%s: worker process %d has been stopped for %.0f s; it is ended, to be replaced, and its "
                "task retried",
                self._label,
                pid,
                seconds,
            )


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
