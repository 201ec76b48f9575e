"""The monitor of a training: an actor that collects what the ranks report until the driver fetches it."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from diffbfr.errors import DiffBFRError
from pipelines.cluster.protocol import Metrics, RestartStats

P = ParamSpec("P")
Result = TypeVar("Result")

_POLL_S = 1.0


class Goodput:
    """The fraction of the time since a training began in which steps were made for the first time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._useful_s = 0.0
        self._start: float | None = None
        self._last: tuple[int, float] | None = None
        self._furthest = 0

    def begin_attempt(self) -> None:
        """Start an attempt; the time until its first step is not useful."""
        self._start = self._clock() if self._start is None else self._start
        self._last = None

    def record_step(self, step: int) -> None:
        """Record that `step` steps are done; of the time since the last call, that of new steps counts."""
        now = self._clock()
        if self._last is not None and step > self._furthest:
            before, at = self._last
            self._useful_s += (now - at) * (step - max(before, self._furthest)) / (step - before)
        self._last = step, now
        self._furthest = max(step, self._furthest)

    def fraction(self) -> float:
        """Goodput so far, in [0, 1]; 0 before the first attempt."""
        elapsed_s = 0.0 if self._start is None else self._clock() - self._start
        return self._useful_s / elapsed_s if elapsed_s else 0.0


class LocalReporter:
    """The `TrainingReporter` of a worker in the driver's own process, which no watchdog watches."""

    def __init__(self, on_metrics: Callable[[Metrics], None]) -> None:
        self.report = on_metrics
        self._goodput = Goodput()
        self._goodput.begin_attempt()

    def heartbeat(self, step: int) -> None:
        self._goodput.record_step(step)

    def finishing(self) -> None:
        pass

    def restart_stats(self) -> RestartStats:
        return RestartStats(0, self._goodput.fraction())


@dataclass(frozen=True)
class RankHeartbeat:
    """The last heartbeat of a rank: where it runs, when it came, and after what silence the rank is hung.

    `step` is -1 before the first is done. `stacks_path` is a file on the rank's machine into which its
    process writes the stacks of its threads on SIGUSR2. `at` is in seconds of the monitor's clock.
    """

    rank: int
    pid: int
    node: str
    step: int
    limit_s: float
    stacks_path: str = ""
    at: float = 0.0


class TrainingMonitor:
    """The state of one training over all its attempts; runs as an actor on the driver's machine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._metrics: list[Metrics] = []
        self._user_errors: dict[int, DiffBFRError] = {}
        self._heartbeats: dict[int, RankHeartbeat] = {}
        self._ended: set[tuple[str, int]] = set()
        self._goodput = Goodput(clock)
        self._num_attempts = 0
        self._exception = ""
        self._exception_before = ""
        self._furthest_step = -1
        self._num_fruitless = 0
        self._failures: list[str] = []
        self._ranks_began = False

    def begin_attempt(self, rank: int, world_size: int) -> int:
        """Count an attempt, on the call of rank 0; returns how many before it in a row made no new step.

        After a group has shrunk, ranks of `world_size` or above are no longer watched.
        """
        kept = {other: beat for other, beat in self._heartbeats.items() if other < world_size}
        self._heartbeats = kept
        if rank == 0:
            self._goodput.begin_attempt()
            self._num_attempts += 1
            self._num_fruitless += 1
            self._ranks_began = True
            self._exception_before = self._exception
            self._exception = ""
        return max(0, self._num_fruitless - 1)

    def record_failed_start(self, reason: str) -> int:
        """Record an attempt whose ranks reported no end; returns how many in a row made no new step.

        An attempt whose ranks had begun was counted by `begin_attempt` already.
        """
        self._num_fruitless += not self._ranks_began
        self._exception = reason
        self._exception_before = reason
        self.record_failure(reason)
        return self._num_fruitless

    def record_failure(self, cause: str) -> None:
        """Record why an attempt ended; not beside an error of the user, which the driver raises anyway."""
        self.forget_ranks()
        self._ranks_began = False
        if not self._user_errors:
            self._failures.append(cause)

    def take_failures(self) -> list[str]:
        """Return the causes that were recorded since the last call."""
        failures = self._failures
        self._failures = []
        return failures

    def restart_stats(self) -> RestartStats:
        return RestartStats(max(0, self._num_attempts - 1), self._goodput.fraction())

    def record_exception(self, reason: str) -> None:
        """Record a rank's exception; only the first of an attempt is kept, as the others follow from it."""
        self._exception = self._exception or reason

    def last_exception(self) -> str:
        """The exception of the attempt before, in one line."""
        return self._exception_before or "no exception: a worker was killed, or its machine was lost"

    def report_user_error(self, rank: int, error: DiffBFRError) -> None:
        """Record an error that the user must fix: another attempt would fail in the same way."""
        self._user_errors[rank] = error

    def num_user_errors(self) -> int:
        """The number of ranks that reported such an error."""
        return len(self._user_errors)

    def user_error(self) -> DiffBFRError | None:
        """The error of the lowest rank that reported one."""
        return self._user_errors[min(self._user_errors)] if self._user_errors else None

    def report(self, metrics: Metrics) -> None:
        self._metrics.append(metrics)

    def take_metrics(self) -> list[Metrics]:
        """Return the metrics that were reported since the last call."""
        metrics = self._metrics
        self._metrics = []
        return metrics

    def record_heartbeat(self, heartbeat: RankHeartbeat) -> None:
        """Record a heartbeat, unless its process belongs to an attempt that has ended.

        The time is taken here, so that the clocks of the machines need not agree.
        """
        if (heartbeat.node, heartbeat.pid) in self._ended:
            return
        self._heartbeats[heartbeat.rank] = replace(heartbeat, at=self._clock())
        if heartbeat.rank == 0 and heartbeat.step >= 0:
            self._goodput.record_step(heartbeat.step)
        if heartbeat.step > self._furthest_step:
            self._furthest_step = heartbeat.step
            self._num_fruitless = 0

    def mark_finished(self, rank: int) -> None:
        """Stop watching a rank."""
        self._heartbeats.pop(rank, None)

    def any_alive(self) -> bool:
        """Whether any rank is being watched."""
        return bool(self._heartbeats)

    def hung_ranks(self) -> list[RankHeartbeat]:
        """All ranks if every one of them has been silent for longer than its limit, else an empty list.

        A rank that stops blocks all others in the next collective, so that a hang is a silence of all.
        """
        now = self._clock()
        silent = [beat for beat in self._heartbeats.values() if now - beat.at > beat.limit_s]
        return silent if len(silent) == len(self._heartbeats) else []

    def forget_ranks(self) -> None:
        """Stop watching the ranks of an attempt that ends or has ended; late heartbeats are dropped."""
        self._ended |= {(beat.node, beat.pid) for beat in self._heartbeats.values()}
        self._heartbeats.clear()


class MonitorClient:
    """Typed calls of a `TrainingMonitor` actor, from the driver and from the ranks.

    Ray's own functions start or join a Ray where this process has none; a call here raises instead.
    `check` stays in the driver: it is called while a call is not answered, and may raise.
    """

    def __init__(self, actor: Any, check: Callable[[], None] | None = None) -> None:
        self.actor = actor
        self._check = check

    def __reduce__(self) -> tuple[type[Self], tuple[Any]]:
        return type(self), (self.actor,)

    @classmethod
    def start(cls, check: Callable[[], None]) -> Self:
        """Start the actor on the driver's machine, which the training cannot outlive."""
        import ray

        # By node affinity a machine that was just added might take the actor; by label it stays here.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        return cls(ray.remote(num_cpus=0, label_selector=here)(TrainingMonitor).remote(), check)

    def call(
        self,
        method: Callable[Concatenate[TrainingMonitor, P], Result],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """Call a method of the monitor and return its result."""
        result: Result = self.result(self.send(method, *args, **kwargs))
        return result

    def send(
        self, method: Callable[Concatenate[TrainingMonitor, P], object], *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Call a method without waiting; returns a reference of the call."""
        _require_ray()
        return getattr(self.actor, method.__name__).remote(*args, **kwargs)

    def result(self, reference: Any, timeout_s: float | None = None) -> Any:
        """The result of a sent call, or its exception; TimeoutError if there is none within `timeout_s`."""
        import ray

        _require_ray()
        while timeout_s is None and self._check is not None:
            self._check()
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                return ray.get(reference, timeout=_POLL_S)
        return ray.get(reference, timeout=timeout_s)

    def stop(self) -> None:
        """Kill the actor."""
        import ray

        if ray.is_initialized():
            ray.kill(self.actor)


def _require_ray() -> None:
    import ray

    if not ray.is_initialized():
        raise ConnectionError("this process is no longer connected to Ray; run the same command again")
