"""Finds the workers of Ray on this machine that a signal has stopped, and kills those that stay so.

Ray replaces workers that die, but waits for ever for one that does nothing.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from pipelines.cluster import orphans

INTERVAL_S: Final = 2.0
"""Between two looks at the processes of this machine."""
_JOB_VARIABLE: Final = "RAY_JOB_ID"


class StoppedWorkers:
    """The workers that `find` finds stopped, and since when; `kill` ends those that were for `stopped_s`."""

    def __init__(
        self,
        stopped_s: float,
        find: Callable[[], list[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stopped_s = stopped_s
        self._find = find
        self._clock = clock
        self._since: dict[tuple[int, str], float] = {}
        self._next_look = clock()

    def kill(self) -> list[tuple[int, float]]:
        """Look, once in `INTERVAL_S`; returns PID and seconds of each worker that was killed."""
        now = self._clock()
        if now < self._next_look or math.isinf(self._stopped_s):
            return []
        self._next_look = now + INTERVAL_S
        found = {(pid, orphans.process_identity(pid)) for pid in self._find()}
        self._since = {worker: self._since.get(worker, now) for worker in found}
        killed = []
        for (pid, _), since in self._since.items():
            if now - since >= self._stopped_s:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                killed.append((pid, now - since))
        return killed


def stopped_workers_of_own_ray() -> list[int]:
    """PIDs of the workers of this driver's own Ray that are stopped; none without `/proc`."""
    stopped = _stopped_workers()
    if not stopped:  # reading the environment of every process takes longer
        return []
    own = orphans.process_identity(os.getpid())
    marked = {pid for pid, _ in orphans.find_processes(lambda driver: driver == own)}
    return sorted(stopped & marked)


def stopped_workers_of_job(job: str) -> list[int]:
    """PIDs of the workers on this machine that are stopped and work for a job of Ray, by its id in hex."""
    return sorted(filter(partial(_is_of_job, job), _stopped_workers()))


def _stopped_workers() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_stopped_worker(entry)}


def _is_stopped_worker(process: Path) -> bool:
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state in "Tt" and b"ray::" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _is_of_job(job: str, pid: int) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{_JOB_VARIABLE}={job}".encode() in variables
