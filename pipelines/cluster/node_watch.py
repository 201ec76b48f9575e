"""A watch on every node of a joined cluster for the workers of this job that were stopped.

The driver sees the processes of its own machine alone. On each node a task without a core looks there
instead. It ends when it has killed a worker, which the driver then says, and is started again.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pipelines.cluster.stopped import INTERVAL_S, StoppedWorkers, stopped_workers_of_job

LOOK_FOR_NODES_S: Final = 10.0
"""Between two looks for nodes that have joined, or whose watch was lost."""
_logger = logging.getLogger(__name__)


class NodeWatches:
    """Tasks that watch the nodes of a cluster; `check` is called while the driver waits, `close` at the end.

    They begin when the work has lasted for `stopped_s`, so that short work pays nothing for them.
    """

    def __init__(self, label: str, stopped_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._stopped_s = stopped_s
        self._clock = clock
        self._watches: dict[Any, tuple[str, str]] = {}
        self._next_look = clock() + stopped_s

    def check(self) -> None:
        """Say which workers were killed, and now and then watch the nodes that nobody watches."""
        self._collect()
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_FOR_NODES_S
            self._start()

    def close(self) -> None:
        """Say what was not said yet, and end the tasks."""
        import ray

        self._collect()
        for reference in self._watches:
            ray.cancel(reference, force=True)
        self._watches.clear()

    def _collect(self) -> None:
        if not self._watches:
            return
        import ray

        ended, _ = ray.wait(list(self._watches), num_returns=len(self._watches), timeout=0)
        for reference in ended:
            _, address = self._watches.pop(reference)
            try:
                killed = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its node was lost, or it was killed itself
            for pid, seconds in killed:
                _logger.warning(
                    "%s: worker process %d of %s has been stopped for %.0f s; it is ended, to be replaced, "
                    "and its task retried",
                    self._label,
                    pid,
                    address,
                    seconds,
                )

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        watched = {node for node, _ in self._watches.values()}
        job = ray.get_runtime_context().get_job_id()
        watch: Any = ray.remote(num_cpus=0, max_retries=0)(watch_node)
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            name = node["NodeID"]
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1 and name not in watched:
                strategy = NodeAffinitySchedulingStrategy(name, soft=False)
                reference = watch.options(scheduling_strategy=strategy).remote(job, self._stopped_s)
                self._watches[reference] = name, str(node["NodeManagerAddress"])


def watch_node(job: str, stopped_s: float) -> list[tuple[int, float]]:
    """Wait until workers of a job were killed on this machine; PID and seconds that each was stopped for."""
    stopped = StoppedWorkers(stopped_s, partial(stopped_workers_of_job, job))
    while not (killed := stopped.kill()):
        time.sleep(INTERVAL_S)
    return killed
