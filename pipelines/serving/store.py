"""The photos that a server holds: by unguessable ids, in memory, for a bounded time and number of bytes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffbfr.errors import DiffBFRError
from pipelines.serving.jobs import Job
from pipelines.storage.machine import memory_bytes


class ServerFullError(DiffBFRError):
    """There is no room for another photo now."""


@dataclass(frozen=True)
class StoreLimits:
    """How many photos may wait, how many results are kept, for how long, and the bytes of all of them."""

    most_waiting: int = 2000
    most_ended: int = 2000
    keep_s: float = 15 * 60.0
    most_bytes: int = min(4 << 30, memory_bytes() // 4)


class JobStore:
    """Holds jobs; a result is dropped when it is old, or the oldest ones when there is no room."""

    def __init__(self, limits: StoreLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, Job] = {}
        self._ended: dict[str, _Ended] = {}
        self._arriving = 0
        self._bytes = 0

    @contextmanager
    def room_for(self, num_bytes: int) -> Iterator[None]:
        """Keep room for a photo while its bytes arrive; `ServerFullError` if there is none."""
        with self._lock:
            self._drop_old(num_bytes)
            waiting = self._arriving + len(self._waiting)
            if waiting >= self.limits.most_waiting:
                raise ServerFullError(
                    f"{waiting} photos wait already; expected fewer than {self.limits.most_waiting}; try "
                    "again in a minute"
                )
            if self._bytes + num_bytes > self.limits.most_bytes:
                raise ServerFullError(
                    f"the photos that wait leave no room for {num_bytes / 2**20:.1f} MiB more; try again "
                    "in a minute"
                )
            self._arriving += 1
            self._bytes += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= 1
                self._bytes -= num_bytes

    def add(self, job: Job) -> None:
        """Hold a job that waits."""
        with self._lock:
            self._waiting[job.id] = job
            self._bytes += len(job.data)

    def end(self, job: Job) -> None:
        """Keep the result of a job, unless it was removed."""
        with self._lock:
            if self._waiting.pop(job.id, None) is None:
                return
            num_bytes = job.num_bytes
            self._bytes += num_bytes - len(job.data)
            self._ended[job.id] = _Ended(job, self._clock(), num_bytes)
            self._drop_old(0)

    def get(self, job_id: str) -> Job | None:
        """The job of an id; None if there is none any more."""
        with self._lock:
            self._drop_old(0)
            ended = self._ended.get(job_id)
            return self._waiting.get(job_id) if ended is None else ended.job

    def remove(self, job_id: str) -> bool:
        """Drop a job; whether there was one."""
        with self._lock:
            if job_id in self._ended:
                self._drop(job_id)
                return True
            job = self._waiting.pop(job_id, None)
            if job is None:
                return False
            self._bytes -= len(job.data)
        job.remove()
        return True

    def _drop_old(self, needed: int) -> None:
        """Drop results that are old, and the oldest ones until there is room for `needed` bytes."""
        while self._ended:
            job_id, oldest = next(iter(self._ended.items()))
            is_old = self._clock() - oldest.at > self.limits.keep_s
            too_many = len(self._ended) > self.limits.most_ended
            if not (is_old or too_many or self._bytes + needed > self.limits.most_bytes):
                return
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        ended = self._ended.pop(job_id)
        self._bytes -= ended.num_bytes
        ended.job.remove()


@dataclass(frozen=True)
class _Ended:
    job: Job
    at: float
    num_bytes: int
