"""Notices a training that hangs: every rank gives signs of life, the driver ends the ranks that give none.

Ray restarts workers that die, not workers that stand still (a stopped process, a deadlock, a network that swallows packets): the
others wait for them in a collective until its timeout. Here the driver sees the silence within `hang_s` and a few seconds, keeps every
rank's stacks, and kills those that do not answer; then the training goes on from its newest checkpoint as after any death.
"""

import faulthandler
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.cluster.link import Pulse
from pipelines.progress import Metrics

GRACE_S = 3.0
_BEAT_S = 1.0
_SLOWEST = 10.0


class RankLink:
    """A rank's side of the board. A thread of its own tells the stacks of all threads when the steps stop coming.

    A rank may be silent for `hang_s`, or for ten times its slowest step so far where that is longer.
    """

    def __init__(self, board: Any, rank: int, node: str, hang_s: float) -> None:
        self._board, self._rank, self._node, self._hang_s = board, rank, node, hang_s
        self._sent: list[Any] = []
        self._slowest = 0.0
        self._last: float | None = None
        self._beaten = -_BEAT_S
        self._told = False
        threading.Thread(target=self._watch, name="diffbfr-watch", daemon=True).start()

    def post(self, metrics: Metrics) -> None:
        """Tell a few numbers, if this is rank 0."""
        if self._rank == 0:
            self._sent[:] = [self._board.post.remote(metrics)]

    def alive(self, step: int) -> None:
        """Beat, at most once a second."""
        now = time.monotonic()
        if self._last is not None:
            self._slowest = max(self._slowest, now - self._last)
        self._last, self._told = now, False
        if now - self._beaten >= _BEAT_S:
            self._beaten = now
            self._board.beat.remote(Pulse(self._rank, os.getpid(), self._node, step, self._limit_s))

    def rest(self) -> None:
        """Stop beating, and watching."""
        self._last = None
        self._board.rest.remote(self._rank)

    def flush(self) -> None:
        """Wait until the last post has arrived."""
        import ray

        ray.get(self._sent)

    @property
    def _limit_s(self) -> float:
        return max(self._hang_s, _SLOWEST * self._slowest)

    def _watch(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            last = self._last
            if last is not None and not self._told and time.monotonic() - last > self._limit_s:
                self._told = True
                self._board.tell_stacks.remote(self._rank, stacks())


def stacks() -> str:
    """Where every thread of this process is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def end_hung(hung: Sequence[Pulse], label: str, root: str, end: Callable[[Pulse], str]) -> str:
    """Kill the ranks that do not even answer (all, if all do: a deadlock); keep and name what each was doing.

    `end(pulse)` kills a rank where it runs and says in which state it was. Returns the place of the stacks.
    """
    mute = [pulse for pulse in hung if not pulse.stacks] or list(hung)
    states = {pulse.rank: end(pulse) for pulse in mute}
    text = "\n".join(
        f"rank {pulse.rank}, process {pulse.pid} on {pulse.node}: {states.get(pulse.rank, 'waiting')}\n{pulse.stacks or '(no answer)'}"
        for pulse in sorted(hung, key=lambda pulse: pulse.rank)
    )
    place = storage.join(root, "hangs", f"{label}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.txt")
    storage.write_atomic(place, text.encode())
    logging.getLogger(__name__).warning(
        "%s: no rank has finished a step for %.0f s; ending rank %s (%s) to go on from the newest checkpoint; stacks in %s",
        label,
        max(pulse.limit_s for pulse in hung) + GRACE_S,
        ", ".join(str(pulse.rank) for pulse in mute),
        "; ".join(sorted(set(states.values()))),
        place,
    )
    return place


def kill_worker(pid: int) -> str:
    """On a rank's machine: kill it, and say in which state it was; a process that is no worker of Ray's is left alone."""
    try:
        if b"ray::" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return "gone"
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return "gone"
    return f"{fields['State'].strip()}, in {_kernel_function(pid)}"


def _kernel_function(pid: int) -> str:
    """Where in the kernel a process waits, if the system tells."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip() or "?"
    except OSError:
        return "?"
