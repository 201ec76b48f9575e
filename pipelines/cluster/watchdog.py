"""Notices a training that hangs: every rank gives signs of life, the driver ends the ranks when none comes
any more.

Ray restarts workers that die, not workers that stand still (a stopped process, a deadlock, a network that
swallows packets): the others wait for them in a collective until its timeout. Here the driver sees the
silence within `hang_s` and a second, logs every rank's stacks, also those of one that was stopped, and kills
them; then the training goes on from its newest checkpoint as after any death.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.cluster.monitor import RankHeartbeat
from pipelines.progress import Metrics, RestartStats

START_S = 900.0
"""Until the first step is done: data is opened, a checkpoint fetched, a network compiled, and no step's
time is known.
"""
END_S = 600.0
"""After the last step: the last checkpoint and the weights are put where they belong."""
LONGEST_S = 300.0
"""What no silence may exceed, unless every other step would."""
_BEAT_S = 1.0
_RECENT_STEPS = 32
_USUAL_STEPS = 5.0
_STACKS_S = 2.0
_ANSWER_S = 20.0
_GONE = "gone"


class RankReporter:
    """A rank's side of the board.

    A rank may be silent for `hang_s`, or for five of its usual steps, a median of the recent ones, where that
    is longer; `LONGEST_S` ends the patience with steps of a minute, and who takes longer than that for a step
    may take two. Until a second step is done the time to the first one stands for a step's. Before the first
    step and after the last it may be silent for `START_S` and `END_S`.
    """

    def __init__(
        self, board: Any, rank: int, node: str, hang_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._board, self._rank, self._node, self._hang_s, self._clock = board, rank, node, hang_s, clock
        self._sent: list[Any] = []
        self._beats: list[Any] = []
        self._steps: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._done, self._since, self._start_s = -1, clock(), START_S
        self._stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the rank lives
        faulthandler.register(signal.SIGUSR2, self._stacks)
        self._beat(START_S)

    def report(self, metrics: Metrics) -> None:
        """Tell a few numbers, if this is rank 0."""
        if self._rank == 0:
            self._sent[:] = [self._board.post.remote(metrics)]

    def heartbeat(self, step: int) -> None:
        """Beat, at most once a second, but at once when less patience is due; the same step again is a
        wait that goes on.
        """
        now = self._clock()
        if step > self._done:
            if self._done >= 0:
                self._steps.append((now - self._since) / (step - self._done))
            else:
                self._start_s = now - self._since
            self._done, self._since = step, now
        if now - self._beaten >= _BEAT_S or self._limit_s < self._told_s:
            self._beat(self._limit_s)

    def finishing(self) -> None:
        """Beat a last time, or once more while the end takes its time."""
        self._beat(END_S)

    def restart_stats(self) -> RestartStats:
        """Ask the board."""
        import ray

        found: RestartStats = ray.get(self._board.history.remote())
        return found

    def close(self) -> None:
        """Be watched no more."""
        self._board.mark_finished.remote(self._rank)
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()

    def flush(self) -> None:
        """Wait until the last post has arrived."""
        import ray

        ray.get(self._sent)

    @property
    def _limit_s(self) -> float:
        usual = statistics.median(self._steps or [self._start_s])
        return max(self._hang_s, min(_USUAL_STEPS * usual, LONGEST_S), 2 * usual)

    def _beat(self, limit_s: float) -> None:
        self._check_heard()
        self._beaten, self._told_s = self._clock(), limit_s
        stacks = f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        self._beats[:] = [
            self._board.record_heartbeat.remote(
                RankHeartbeat(self._rank, os.getpid(), self._node, self._done, limit_s, stacks)
            )
        ]

    def _check_heard(self) -> None:
        """End this rank with an error if nobody hears it any more: the driver has ended the training, or
        lost it.
        """
        if self._beats:
            import ray

            answered, _ = ray.wait(self._beats, num_returns=1, timeout=0)
            ray.get(answered)


def kill_hung_ranks(
    hung: Sequence[RankHeartbeat],
    label: str,
    root: str,
    end: Callable[[Sequence[RankHeartbeat]], Sequence[tuple[str, str]]],
) -> str:
    """Kill ranks that hang; log what each was doing, and keep it in a file, whose place is returned, or ""
    where none can be written.

    `end(pulses)` asks each rank where it runs for its state and its threads (`dump_worker_stacks`), and when
    all have told kills them. Ranks of which none is there any more do not hang: their group was ended for
    another of a different size, and "" is returned.
    """
    told = list(end(hung))
    if all(state == _GONE for state, _ in told):
        return ""
    text = "\n".join(
        f"rank {pulse.rank}, process {pulse.pid} on {pulse.node}, {pulse.step} steps done: "
        f"{state}\n{stacks or '(no answer)'}"
        for pulse, (state, stacks) in sorted(zip(hung, told, strict=True), key=lambda it: it[0].rank)
    )
    place = storage.join(root, "hangs", f"{label}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.txt")
    try:
        storage.write_atomic(place, text.encode())
        kept = f"this is also in {place}"
    except Exception as error:  # what refuses it may be what they hung on: the training goes on all the same
        kept, place = f"it could not be kept in {place} ({error})", ""
    logging.getLogger(__name__).warning(
        "%s: no rank has given a sign for %.0f s; all are ended, to go on from the newest checkpoint; %s\n%s",
        label,
        max(pulse.limit_s for pulse in hung),
        kept,
        text,
    )
    return place


def kill_ranks(pulses: Sequence[RankHeartbeat]) -> list[tuple[str, str]]:
    """Ask all ranks what they do, then kill them: one that dies takes the others with it before they have
    told.
    """
    told = _there(dump_worker_stacks, [(pulse.node, (pulse.pid, pulse.stacks)) for pulse in pulses])
    _there(kill_worker, [(pulse.node, (pulse.pid,)) for pulse in pulses])
    return [(f"out of reach ({type(it).__name__})", "") if isinstance(it, Exception) else it for it in told]


def _there(function: Callable[..., Any], calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """Call a function on several machines at once; an exception where one is gone, or as silent as its
    rank.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, running = ray.remote(num_cpus=0)(function), []
    for node, arguments in calls:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        running.append(task.options(scheduling_strategy=strategy, max_retries=0).remote(*arguments))
    ray.wait(running, num_returns=len(running), timeout=_ANSWER_S)
    found = []
    for call in running:
        try:
            found.append(ray.get(call, timeout=0))
        except ray.exceptions.RayError as error:
            found.append(error)
    return found


def dump_worker_stacks(pid: int, stacks: str) -> tuple[str, str]:
    """On a rank's machine: in which state it is and where its threads are; one that was stopped goes on,
    for it could not tell.
    """
    try:
        if not _is_worker(pid):
            return _GONE, ""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return f"{fields['State'].strip()}, in {_kernel_function(pid)}", _ask_stacks(pid, stacks)
    except (OSError, ValueError):
        return _GONE, ""


def kill_worker(pid: int) -> None:
    """On a rank's machine: kill it."""
    with contextlib.suppress(OSError):
        if _is_worker(pid):
            os.kill(pid, signal.SIGKILL)


def _is_worker(pid: int) -> bool:
    """Whether a process is a worker of Ray's; others are left alone."""
    return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _ask_stacks(pid: int, stacks: str) -> str:
    """Where a process's threads are, by faulthandler, which needs no interpreter that runs; "" if it does
    not say within `_STACKS_S`.
    """
    told = ""
    with contextlib.suppress(OSError):
        file = Path(stacks)
        before = file.stat().st_size
        os.kill(pid, signal.SIGUSR2)  # first: a stopped process has it waiting when it goes on
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + _STACKS_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = file.read_text()[before:]
            if now and now == told:
                break
            told = now
    return told


def _kernel_function(pid: int) -> str:
    """Where in the kernel a process waits, if the system tells."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip() or "?"
    except OSError:
        return "?"
