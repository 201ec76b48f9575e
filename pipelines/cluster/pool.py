"""Tasks on Ray or in this process; every task ends with a report or is counted as failed, never neither.

A worker that dies, or whose task hangs, is replaced, and its task is retried by whichever is free. A task
that failed on a network or a server is retried by its worker after a pause. Any other exception would be
raised again, so that it is not retried.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from pipelines import storage
from pipelines.cluster.capacity import CapacityWarning
from pipelines.cluster.failures import describe, unwrap
from pipelines.cluster.hangs import HangWatch, time_limit
from pipelines.cluster.metrics import MetricsExporter
from pipelines.progress import Fact, Progress

Task = TypeVar("Task")
Report = TypeVar("Report")
Facts = Mapping[str, Fact]

NUM_RETRIES = 3
"""How often a task is retried after its actor died: the task itself may be what kills actors."""
NUM_WORKER_DEATHS = 20
"""How often a stateless task is retried after its worker died, usually by preemption or the OOM killer."""
BACKOFF_S = (1.0, 4.0, 16.0)
"""Pauses before the retries of a task that the network failed, although storage retries each call itself."""

_NUM_NAMED = 3
_POLL_S = 0.5


class Collector(Generic[Task, Report]):
    """The tasks of one work, taken one by one, and what became of them; independent of Ray.

    With `on_report` alone it holds the tasks in flight and nothing of those that have ended; `keep` keeps the
    report of each for `reports`.
    """

    def __init__(
        self,
        label: str,
        tasks: Iterable[Task],
        weight: Callable[[Task], int],
        progress: Progress,
        on_report: Callable[[Report], Facts | None] | None,
        metrics: MetricsExporter | None = None,
        keep: bool = True,
    ) -> None:
        self.label = label
        self.metrics = metrics if metrics is not None else MetricsExporter(label, enabled=False)
        self._tasks = iter(tasks)
        self._weight = weight
        self._progress = progress
        self._on_report = on_report
        self._keep = keep
        self._taken = 0
        self._in_flight: dict[int, Task] = {}
        self._reports: dict[int, Report] = {}
        self._first_failures: list[tuple[int, str]] = []
        self._cause: BaseException | None = None
        self.num_failed = 0

    def take(self) -> tuple[int, Task] | None:
        """The next task and its position; None if there is none left."""
        for task in self._tasks:
            position = self._taken
            self._taken += 1
            self._in_flight[position] = task
            return position, task
        return None

    def task(self, position: int) -> Task:
        """A task that was taken and has not ended."""
        return self._in_flight[position]

    def succeed(self, position: int, report: Report) -> None:
        """Record a report, call `on_report`, move the progress line."""
        weight = self._weight(self._in_flight.pop(position))
        if self._keep:
            self._reports[position] = report
        facts = self._on_report(report) if self._on_report is not None else None
        self._progress.advance(weight, **(facts or {}))
        self.metrics.done(weight, self._progress.unit)
        self.metrics.report(report)

    def fail(self, position: int, error: BaseException) -> None:
        """Record a failure; one of the request or the place is raised, as other tasks would meet it too."""
        task = self._in_flight.pop(position)
        if isinstance(error, UsageError | QuarantineError | storage.PlaceError):
            raise error
        self.num_failed += 1
        self._cause = self._cause or error
        named = f"task {getattr(task, 'index', position)}: {describe(error)}"
        self._first_failures = sorted([*self._first_failures, (position, named)])[:_NUM_NAMED]
        self.metrics.task_failed()

    def check(self) -> None:
        """IncompleteError that names the first tasks that failed, if any has."""
        if self.num_failed:
            named = "; ".join(text for _, text in self._first_failures)
            num_more = self.num_failed - len(self._first_failures)
            more = f", and {num_more} more" if num_more else ""
            raise IncompleteError(
                f"{self.label}: {self.num_failed} of {self._taken} tasks failed ({named}{more}); "
                "the others are done; run the same command again"
            ) from self._cause

    def reports(self) -> list[Report]:
        """Every report, in the order of the tasks; IncompleteError as of `check`."""
        self.check()
        return [self._reports[position] for position in range(self._taken)]


class Worker(Generic[Task, Report]):
    """An actor that builds its function at the first task, so that an error in it fails that task only."""

    def __init__(self, factory: Callable[[], Callable[[Task], Report]]) -> None:
        self._factory = factory
        self._function: Callable[[Task], Report] | None = None

    def ping(self) -> None:
        """Answer, which shows that the cluster had room for this actor."""

    def run(self, task: Task) -> Report:
        if self._function is None:
            self._function = self._factory()
        return with_retries(self._function, task)


def with_retries(function: Callable[[Task], Report], task: Task) -> Report:
    """Run one task; a transient error of the network or of storage is retried after each of `BACKOFF_S`."""
    for pause_s in BACKOFF_S:
        try:
            return function(task)
        except Exception as error:
            if not storage.is_transient(error):
                raise
            time.sleep(pause_s)
    return function(task)


def run_serially(function: Callable[[Task], Report], collector: Collector[Task, Report]) -> None:
    """Run every task in this process, in order; a task that fails stops no other, as on Ray."""
    while taken := collector.take():
        position, task = taken
        try:
            report = function(task)
        except Exception as error:
            collector.fail(position, error)
        else:
            collector.succeed(position, report)


def run_tasks(
    function: Callable[[Task], Report],
    collector: Collector[Task, Report],
    max_in_flight: int,
    check: Callable[[], None],
    hangs: HangWatch | None = None,
) -> None:
    """Run every task as a Ray task, which Ray itself retries when its worker dies."""
    import ray

    limit_s = hangs.limit_s if hangs else math.inf

    @ray.remote(num_cpus=1, max_retries=NUM_WORKER_DEATHS)
    def run(task: Task) -> Report:
        # the worker keeps the time itself: for the driver, a task may long have waited for a core
        with time_limit(limit_s):
            return function(task)

    def has_no_core() -> bool:
        return bool(ray.cluster_resources().get("CPU", 0) < 1)  # type: ignore[no-untyped-call]

    capacity = CapacityWarning(collector.label, max_in_flight, 1)
    hangs = hangs or HangWatch(collector.label)
    in_flight: dict[Any, int] = {}

    def on_poll() -> None:
        capacity.check(False, has_no_core)
        hangs.check()

    try:
        while True:
            while len(in_flight) < max_in_flight and (taken := collector.take()):
                in_flight[run.remote(taken[1])] = taken[0]
            if not in_flight:
                break
            ended = _wait_for_one(in_flight, check, on_poll)
            position = in_flight.pop(ended)
            try:
                report = ray.get(ended)
            except ray.exceptions.RayError as error:
                check()
                collector.fail(position, unwrap(error))
            else:
                collector.succeed(position, report)
    finally:
        for reference in in_flight:
            ray.cancel(reference, force=True)


def run_actors(
    factory: Callable[[], Callable[[Task], Report]],
    collector: Collector[Task, Report],
    num_actors: int,
    num_cpus: int,
    num_gpus: float,
    check: Callable[[], None],
    hangs: HangWatch | None = None,
) -> None:
    """Run every task on a pool of actors; an actor that dies is replaced, and its task retried.

    An actor gets a task only after it has answered a ping, so that an actor for which the cluster has no room
    holds no task back from the others.
    """
    import ray

    actor_class: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
    num_deaths: Counter[int] = Counter()
    retries: list[int] = []
    in_flight: dict[Any, tuple[int, Any]] = {}
    capacity = CapacityWarning(collector.label, num_actors, num_cpus)
    hangs = hangs or HangWatch(collector.label)

    def has_no_room() -> bool:
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return bool(free.get("CPU", 0) < num_cpus or free.get("GPU", 0) < num_gpus)

    def take() -> tuple[int, Task] | None:
        if retries:
            position = retries.pop()
            return position, collector.task(position)
        return collector.take()

    def on_poll() -> None:
        capacity.check(bool(in_flight), has_no_room)
        hangs.check()
        late = hangs.overdue()
        for position, actor in in_flight.values():
            if position in late:
                ray.kill(actor)  # its call then ends with an error, as if it had died

    actors = _ActorPool(lambda: actor_class.remote(factory), num_actors)
    try:
        waiting = take()
        while waiting or in_flight:
            while waiting and actors.idle:
                position, actor = waiting[0], actors.idle.pop()
                in_flight[actor.run.remote(waiting[1])] = position, actor
                hangs.begin(position)
                waiting = take()
            if not in_flight and not actors.starting:
                raise IncompleteError(
                    f"{actors.num_failed_starts} workers died before they began; expected them to live; run "
                    "the same command again"
                )
            ended = _wait_for_one([*in_flight, *actors.starting], check, on_poll)
            if ended not in in_flight:
                actors.mark_ready(ended)
                continue
            position, actor = in_flight.pop(ended)
            hangs.end(position)
            try:
                report = ray.get(ended)
            # Raised by the task itself: its actor lives, and takes the next one.
            except ray.exceptions.RayTaskError as error:
                collector.fail(position, unwrap(error))
            # The actor was killed, ran out of memory, or is out of reach.
            except ray.exceptions.RayError as error:
                check()
                actors.replace(actor)
                collector.metrics.worker_died()
                num_deaths[position] += 1
                if num_deaths[position] > NUM_RETRIES:
                    collector.fail(position, error)
                else:
                    # the retry first, before the task that has no actor yet
                    retries += [waiting[0], position] if waiting else [position]
                    waiting = take()
                continue
            else:
                num_deaths.pop(position, None)
                collector.succeed(position, report)
            actors.idle.append(actor)
    finally:
        actors.kill()


class _ActorPool:
    """Actors that are `idle`, or `starting` (by the reference of their first ping), or run a task.

    Ray's own restarts (`max_restarts`, `max_task_retries`) would bind a task to its actor: where a machine is
    lost and the cluster has no room for the actor any more, its task would wait while others are idle.
    """

    def __init__(self, make: Callable[[], Any], num_actors: int) -> None:
        self._make = make
        self._actors: list[Any] = []
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.num_failed_starts = 0
        for _ in range(num_actors):
            self._start()

    def mark_ready(self, ping: Any) -> None:
        """Make an actor idle whose ping has ended; one that died is replaced, up to `NUM_RETRIES` in all."""
        import ray

        actor = self.starting.pop(ping)
        try:
            ray.get(ping)
        except ray.exceptions.RayError:
            self.num_failed_starts += 1
            if self.num_failed_starts <= NUM_RETRIES:
                self.replace(actor)
        else:
            self.idle.append(actor)

    def replace(self, actor: Any) -> None:
        """Start another actor in the place of one that died."""
        import ray

        self._actors.remove(actor)
        ray.kill(actor)
        self._start()

    def kill(self) -> None:
        """Kill every actor, as the frames of an exception would keep one, and its cores, for as long."""
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _start(self) -> None:
        actor = self._make()
        self._actors.append(actor)
        self.starting[actor.ping.remote()] = actor


def gpu_share(num_actors: int, num_gpus: int) -> float:
    """The part of a GPU for each of `num_actors`: the largest for which each has room on one GPU."""
    return 1.0 / math.ceil(num_actors / num_gpus) if num_gpus else 0.0


def _wait_for_one(references: Iterable[Any], check: Callable[[], None], on_poll: Callable[[], None]) -> Any:
    """Wait for the first call to end; calls `check`, which may raise, and `on_poll` meanwhile."""
    import ray

    while True:
        check()
        done, _ = ray.wait(list(references), num_returns=1, timeout=_POLL_S)
        if done:
            return done[0]
        on_poll()
