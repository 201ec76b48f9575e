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
                logging.getLogger(__name__).warning(
                    "%s: waiting for %d workers of %d CPUs each; %d CPUs are free; add machines, or stop and "
                    "lower cluster.num_workers",
                    self._label,
                    self._num_workers,
                    self._num_cpus,
                    ray.available_resources().get("CPU", 0),  # type: ignore[no-untyped-call]
                )
