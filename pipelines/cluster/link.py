"""The driver's end of the `Link` to a training's workers: the board they post to, and a link for a worker in the driver's process."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from diffbfr.errors import DiffBFRError
from pipelines.progress import Metrics


class SerialLink:
    """The side of a worker that runs in the driver's own process, where nobody watches."""

    def __init__(self, on_metrics: Callable[[Metrics], None]) -> None:
        self.post = on_metrics

    def alive(self, step: int) -> None:
        """Nobody asks."""

    def rest(self) -> None:
        """Nobody asks."""


@dataclass(frozen=True)
class Pulse:
    """The last sign of life of a rank: where it runs, when, and how long a silence after it is still no reason to worry."""

    rank: int
    pid: int
    node: str
    step: int
    limit_s: float
    at: float = 0.0
    stacks: str = ""
    """Of all its threads, told by its own watch when the silence became too long; "" while it has not answered."""


class Board:
    """A tiny actor between the ranks, which post, and the driver, which drains."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._posts: list[Metrics] = []
        self._refusals: dict[int, DiffBFRError] = {}
        self._pulses: dict[int, Pulse] = {}
        self._failure = self._failure_before = ""
        self._furthest = -1
        self._fruitless = 0

    def begin(self, rank: int) -> int:
        """Count an attempt that rank 0 begins; returns how many before it came no further than earlier ones."""
        if rank == 0:
            self._pulses.clear()
            self._fruitless += 1
            self._failure, self._failure_before = "", self._failure
        return max(0, self._fruitless - 1)

    def fail(self, reason: str) -> None:
        """Keep a rank's exception in words, the first of an attempt: the others' follow from it."""
        self._failure = self._failure or reason

    def failure(self) -> str:
        """That of the attempt before, or what is left to say of ranks that died without one."""
        return self._failure_before or "no exception: a worker was killed, or its machine was lost"

    def refuse(self, rank: int, error: DiffBFRError) -> None:
        """Keep a rank's reason why the training cannot be run."""
        self._refusals[rank] = error

    def num_refusals(self) -> int:
        """How many ranks gave one."""
        return len(self._refusals)

    def refusal(self) -> DiffBFRError | None:
        """That of the first rank which gave one."""
        return self._refusals[min(self._refusals)] if self._refusals else None

    def post(self, metrics: Metrics) -> None:
        """Keep one post until the driver asks."""
        self._posts.append(metrics)

    def drain(self) -> list[Metrics]:
        """Hand over what came since the last time."""
        posts, self._posts = self._posts, []
        return posts

    def beat(self, pulse: Pulse) -> None:
        """Take a sign of life; it is dated here, so that machines need not agree on the time."""
        self._pulses[pulse.rank] = replace(pulse, at=self._clock())
        if pulse.step > self._furthest:
            self._furthest, self._fruitless = pulse.step, 0

    def rest(self, rank: int) -> None:
        """Stop watching a rank."""
        self._pulses.pop(rank, None)

    def tell_stacks(self, rank: int, stacks: str) -> None:
        """Keep where a silent rank's threads are."""
        if rank in self._pulses:
            self._pulses[rank] = replace(self._pulses[rank], stacks=stacks)

    def hung(self, grace_s: float) -> list[Pulse]:
        """All ranks, when none of them has given a sign for longer than it may, and had the grace to tell its stacks; else nothing.

        One rank that stops holds up all others in the next collective, so that a hang is a silence of all.
        """
        now = self._clock()
        silent = [pulse for pulse in self._pulses.values() if now - pulse.at > pulse.limit_s + grace_s]
        return silent if silent and len(silent) == len(self._pulses) else []

    def forget(self) -> None:
        """Forget the ranks of an attempt that is being ended."""
        self._pulses.clear()
