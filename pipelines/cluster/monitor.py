"""The driver's end of the `TrainingReporter` to a training's workers: the board they post to, and a link
for a worker in the driver's process.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffbfr.errors import DiffBFRError
from pipelines.progress import Metrics, RestartStats


class Goodput:
    """The share of the time since a training first began in which steps were made that no attempt before
    had made.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._useful = clock, 0.0
        self._since: float | None = None
        self._last: tuple[int, float] | None = None
        self._furthest = 0

    def begin(self) -> None:
        """Begin an attempt; what it does before its first step is no use."""
        self._since = self._clock() if self._since is None else self._since
        self._last = None

    def step(self, step: int) -> None:
        """Hear that so many steps are done; of the time since the last word the part counts that went into
        new ones.
        """
        now = self._clock()
        if self._last is not None and step > self._furthest:
            before, at = self._last
            self._useful += (now - at) * (step - max(before, self._furthest)) / (step - before)
        self._last, self._furthest = (step, now), max(step, self._furthest)

    def fraction(self) -> float:
        """Until now."""
        seconds = 0.0 if self._since is None else self._clock() - self._since
        return self._useful / seconds if seconds else 0.0


class LocalReporter:
    """The side of a worker that runs in the driver's own process, where nobody watches."""

    def __init__(self, on_metrics: Callable[[Metrics], None]) -> None:
        self.report = on_metrics
        self._goodput = Goodput()
        self._goodput.begin()

    def heartbeat(self, step: int) -> None:
        """Only the time is taken."""
        self._goodput.step(step)

    def finishing(self) -> None:
        """Nobody asks."""

    def restart_stats(self) -> RestartStats:
        """A single attempt."""
        return RestartStats(0, self._goodput.fraction())


@dataclass(frozen=True)
class RankHeartbeat:
    """The last sign of life of a rank: where it runs, when, and how long a silence after it is still no
    reason to worry.

    `step` is -1 before the first is done. `stacks` is a file on its machine into which SIGUSR2 makes it write
    where its threads are.
    """

    rank: int
    pid: int
    node: str
    step: int
    limit_s: float
    stacks: str = ""
    at: float = 0.0


class TrainingMonitor:
    """A tiny actor between the ranks, which post, and the driver, which drains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._posts: list[Metrics] = []
        self._refusals: dict[int, DiffBFRError] = {}
        self._pulses: dict[int, RankHeartbeat] = {}
        self._ended: set[tuple[str, int]] = set()
        self._goodput = Goodput(clock)
        self._attempts = 0
        self._failure = self._failure_before = ""
        self._furthest = -1
        self._fruitless = 0
        self._losses: list[str] = []
        self._begun = False

    def begin(self, rank: int, world: int) -> int:
        """Count an attempt that rank 0 begins; returns how many before it came no further than earlier ones.

        Of a group that has shrunk, ranks that are no more are watched no more.
        """
        self._pulses = {other: pulse for other, pulse in self._pulses.items() if other < world}
        if rank == 0:
            self._goodput.begin()
            self._attempts += 1
            self._fruitless += 1
            self._begun = True
            self._failure, self._failure_before = "", self._failure
        return max(0, self._fruitless - 1)

    def record_failed_start(self, reason: str) -> int:
        """Take the end of an attempt that no rank told of; one whose ranks had not begun is counted, as
        `begin` counts those that had.
        """
        self._fruitless += not self._begun
        self._failure = self._failure_before = reason
        self.record_failure(reason)
        return self._fruitless

    def record_failure(self, cause: str) -> None:
        """Forget the ranks of an attempt that ended of this, and keep it for the driver; what the user
        must mend it hears anyway.
        """
        self.forget()
        self._begun = False
        if not self._refusals:
            self._losses.append(cause)

    def failures(self) -> list[str]:
        """Hand over what ended attempts since the last time."""
        losses, self._losses = self._losses, []
        return losses

    def restart_stats(self) -> RestartStats:
        """How the training has gone so far."""
        return RestartStats(max(0, self._attempts - 1), self._goodput.fraction())

    def fail(self, reason: str) -> None:
        """Keep a rank's exception in words, the first of an attempt: the others' follow from it."""
        self._failure = self._failure or reason

    def failure(self) -> str:
        """That of the attempt before, or what is left to say of ranks that died without one."""
        return self._failure_before or "no exception: a worker was killed, or its machine was lost"

    def report_user_error(self, rank: int, error: DiffBFRError) -> None:
        """Keep a rank's reason why the training cannot be run."""
        self._refusals[rank] = error

    def num_user_errors(self) -> int:
        """How many ranks gave one."""
        return len(self._refusals)

    def user_error(self) -> DiffBFRError | None:
        """That of the first rank which gave one."""
        return self._refusals[min(self._refusals)] if self._refusals else None

    def report(self, metrics: Metrics) -> None:
        """Keep one post until the driver asks."""
        self._posts.append(metrics)

    def drain(self) -> list[Metrics]:
        """Hand over what came since the last time."""
        posts, self._posts = self._posts, []
        return posts

    def record_heartbeat(self, pulse: RankHeartbeat) -> None:
        """Take a sign of life; it is dated here, so that machines need not agree on the time. The last
        words of the dead do not count.
        """
        if (pulse.node, pulse.pid) in self._ended:
            return
        self._pulses[pulse.rank] = replace(pulse, at=self._clock())
        if pulse.rank == 0 and pulse.step >= 0:
            self._goodput.step(pulse.step)
        if pulse.step > self._furthest:
            self._furthest, self._fruitless = pulse.step, 0

    def mark_finished(self, rank: int) -> None:
        """Stop watching a rank."""
        self._pulses.pop(rank, None)

    def any_alive(self) -> bool:
        """Whether any rank is being watched."""
        return bool(self._pulses)

    def hung(self) -> list[RankHeartbeat]:
        """All ranks, when none of them has given a sign for longer than it may; else nothing.

        One rank that stops holds up all others in the next collective, so that a hang is a silence of all.
        """
        now = self._clock()
        silent = [pulse for pulse in self._pulses.values() if now - pulse.at > pulse.limit_s]
        return silent if silent and len(silent) == len(self._pulses) else []

    def forget(self) -> None:
        """Forget the ranks of an attempt that has ended, or is being ended: no silence of theirs is a
        hang.
        """
        self._ended |= {(pulse.node, pulse.pid) for pulse in self._pulses.values()}
        self._pulses.clear()
