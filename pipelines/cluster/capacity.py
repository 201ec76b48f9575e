"""Work that waits for machines says so."""

import logging
import time
from collections.abc import Callable

WAIT_S = 60.0


class CapacityWarning:
    """Says once a minute that work of `num_workers` workers waits for cores, while none of them lives."""

    def __init__(self, label: str, num_workers: int, num_cpus: int) -> None:
        self._label, self._num_workers, self._num_cpus = label, num_workers, num_cpus
        self._next = time.monotonic() + WAIT_S

    def check(self, lives: bool, waits: Callable[[], bool]) -> None:
        """Say so when it is time, and no worker lives, and `waits` says that none has a place."""
        import ray

        if lives:
            self._next = time.monotonic() + WAIT_S
        elif time.monotonic() >= self._next:
            self._next += WAIT_S
            if waits():
                logging.getLogger(__name__).warning(
                    "%s: waiting for %d workers of %d CPUs each; %d CPUs are free; add machines, or stop and "
                    "lower cluster.num_workers",
                    self._label,
                    self._num_workers,
                    self._num_cpus,
                    ray.available_resources().get("CPU", 0),  # type: ignore[no-untyped-call]
                )
