"""A warning while work waits for free cores."""

import logging
import time
from collections.abc import Callable

WARNING_INTERVAL_S = 60.0


class CapacityWarning:
    """Warns once a minute while no worker of some work is alive because the cluster has no room for it."""

    def __init__(self, label: str, num_workers: int, num_cpus: int) -> None:
        self._label = label
        self._num_workers = num_workers
        self._num_cpus = num_cpus
        self._next = time.monotonic() + WARNING_INTERVAL_S

    def check(self, any_alive: bool, is_waiting: Callable[[], bool]) -> None:
        """Warn if a minute is over; `is_waiting` asks Ray whether the work waits for room."""
        import ray

        if any_alive:
            self._next = time.monotonic() + WARNING_INTERVAL_S
        elif time.monotonic() >= self._next:
            self._next += WARNING_INTERVAL_S
            if is_waiting():
                total = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
                free = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
                logging.getLogger(__name__).warning(
                    "%s: waiting for %d workers of %d CPUs each; the cluster has %d CPUs, %d of them in use; "
                    "%s",
                    self._label,
                    self._num_workers,
                    self._num_cpus,
                    total,
                    total - free,
                    _advice(self._num_workers * self._num_cpus, total, free),
                )


def _advice(needed: float, total: float, free: float) -> str:
    """What to do: machines are missing, or other work has the cores, or the cores are free."""
    if needed > total:
        return "add machines, or stop and lower cluster.num_workers"
    if needed > free:
        return "it goes on when other work frees them, or add machines"
    return "these suffice, so the start is slow, or a GPU or one machine with room for a worker is missing"
