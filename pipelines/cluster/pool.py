"""Tasks on Ray, or in this process: every task ends with a report or is counted as failed, never neither.

A worker that dies is replaced, and its task tried again, by whoever is free. A task that a network or a
server failed is tried again by its worker, after a pause. Any other error is the task's own: it would only
come again.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from pipelines import storage
from pipelines.cluster.capacity import CapacityWarning
from pipelines.progress import Progress

Task = TypeVar("Task")
Report = TypeVar("Report")

NUM_RETRIES = 3
NUM_WORKER_DEATHS = 20
"""How often a plain task runs again because its worker died: it holds nothing, so that whoever dies of it
was most likely killed.
"""
PAUSES_S = (1.0, 4.0, 16.0)
"""Before each further try of a task that the network failed; storage has tried each call five times by
then.
"""

_NUM_NAMED = 3
_POLL_S = 0.5


class Collector(Generic[Task, Report]):
    """What came of each task so far, by position; knows nothing of Ray."""

    def __init__(
        self,
        label: str,
        tasks: Sequence[Task],
        weight: Callable[[Task], int],
        progress: Progress,
        on_report: Callable[[Report], None] | None,
    ) -> None:
        self.tasks, self.label = tasks, label
        self._weight, self._progress, self._on_report = weight, progress, on_report
        self._reports: dict[int, Report] = {}
        self._failures: dict[int, BaseException] = {}

    def succeed(self, position: int, report: Report) -> None:
        """Keep a report, show the progress, tell the listener."""
        self._reports[position] = report
        self._progress.advance(self._weight(self.tasks[position]))
        if self._on_report is not None:
            self._on_report(report)

    def fail(self, position: int, error: BaseException) -> None:
        """Count a failure; what the user must mend is raised at once, for the other tasks would only say
        the same.
        """
        if isinstance(error, UsageError | QuarantineError):
            raise error
        self._failures[position] = error

    def reports(self) -> list[Report]:
        """Every report, in the order of the tasks; IncompleteError that names the failed ones if there are
        any.
        """
        if self._failures:
            named = [
                self._describe(position, error)
                for position, error in sorted(self._failures.items())[:_NUM_NAMED]
            ]
            more = (
                f", and {len(self._failures) - _NUM_NAMED} more" if len(self._failures) > _NUM_NAMED else ""
            )
            raise IncompleteError(
                f"{self.label}: {len(self._failures)} of {len(self.tasks)} tasks failed "
                f"({'; '.join(named)}{more}); "
                "the others are done; run the same command again"
            ) from next(iter(self._failures.values()))
        return [self._reports[position] for position in range(len(self.tasks))]

    def _describe(self, position: int, error: BaseException) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (
            f"task {getattr(self.tasks[position], 'index', position)}: {type(error).__name__}: "
            f"{lines[0] if lines else 'no message'}"
        )


class Worker(Generic[Task, Report]):
    """One actor: builds its function at the first task, so that an error in it is that task's error, then
    keeps it.
    """

    def __init__(self, factory: Callable[[], Callable[[Task], Report]]) -> None:
        self._factory = factory
        self._function: Callable[[Task], Report] | None = None

    def answer(self) -> None:
        """Answer, and so say that there is a place for this actor."""

    def run(self, task: Task) -> Report:
        """Do one task."""
        if self._function is None:
            self._function = self._factory()
        return with_retries(self._function, task)


def with_retries(function: Callable[[Task], Report], task: Task) -> Report:
    """Do one task; while a passing fault stops it, again after each of `PAUSES_S`."""
    for pause_s in PAUSES_S:
        try:
            return function(task)
        except Exception as error:
            if not storage.is_transient(error):
                raise
            time.sleep(pause_s)
    return function(task)


def run_serially(function: Callable[[Task], Report], collector: Collector[Task, Report]) -> None:
    """Every task in this process, in order."""
    for position, task in enumerate(collector.tasks):
        try:
            report = function(task)
        except Exception as error:  # the serial twin treats a failing task as Ray does: the others go on
            collector.fail(position, error)
        else:
            collector.succeed(position, report)


def run_tasks(
    function: Callable[[Task], Report],
    collector: Collector[Task, Report],
    num_at_once: int,
    stopping: threading.Event,
) -> None:
    """Every task as a Ray task, at most `num_at_once` in flight; Ray runs a task again when its worker
    dies.
    """
    import ray

    @ray.remote(num_cpus=1, max_retries=NUM_WORKER_DEATHS)
    def run(task: Task) -> Report:
        return function(task)

    def without_cores() -> bool:
        return bool(ray.cluster_resources().get("CPU", 0) < 1)  # type: ignore[no-untyped-call]

    waiting = deque(range(len(collector.tasks)))
    waiting_for_cores = CapacityWarning(collector.label, num_at_once, 1)
    flying: dict[Any, int] = {}
    try:
        while waiting or flying:
            while waiting and len(flying) < num_at_once:
                position = waiting.popleft()
                flying[run.remote(collector.tasks[position])] = position
            ended = _next(flying, stopping, lambda: waiting_for_cores.check(lives=False, waits=without_cores))
            position = flying.pop(ended)
            try:
                report = ray.get(ended)
            except ray.exceptions.RayError as error:
                collector.fail(position, _cause(error))
            else:
                collector.succeed(position, report)
    finally:
        for reference in flying:
            ray.cancel(reference, force=True)


def run_actors(
    factory: Callable[[], Callable[[Task], Report]],
    collector: Collector[Task, Report],
    num_actors: int,
    num_cpus: int,
    num_gpus: float,
    stopping: threading.Event,
) -> None:
    """Every task on a pool of actors; a dead actor is replaced, and its task tried again.

    An actor gets its first task once it has answered: one that the cluster has no room for, or no longer,
    keeps no task from the others.
    """
    import ray

    actor_class: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Worker)
    attempts = [0] * len(collector.tasks)
    waiting = deque(range(len(collector.tasks)))
    flying: dict[Any, tuple[int, Any]] = {}
    waiting_for_cores = CapacityWarning(collector.label, num_actors, num_cpus)

    def crowded() -> bool:
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return bool(free.get("CPU", 0) < num_cpus or free.get("GPU", 0) < num_gpus)

    crew = _ActorPool(lambda: actor_class.remote(factory), num_actors)
    try:
        while waiting or flying:
            while waiting and crew.idle:
                position, actor = waiting.popleft(), crew.idle.pop()
                flying[actor.run.remote(collector.tasks[position])] = position, actor
            if not flying and not crew.coming:
                raise IncompleteError(
                    f"{crew.num_stillborn} workers died before they began; expected them to live; run the "
                    "same command again"
                )
            ended = _next(
                [*flying, *crew.coming],
                stopping,
                lambda: waiting_for_cores.check(lives=bool(flying), waits=crowded),
            )
            if ended not in flying:
                crew.mark_ready(ended)
                continue
            position, actor = flying.pop(ended)
            try:
                report = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                collector.fail(position, _cause(error))
            except ray.exceptions.RayError as error:  # killed, out of memory, out of reach
                crew.replace(actor)
                attempts[position] += 1
                if attempts[position] > NUM_RETRIES:
                    collector.fail(position, error)
                else:
                    waiting.appendleft(position)
                continue
            else:
                collector.succeed(position, report)
            crew.idle.append(actor)
    finally:
        crew.end()


class _ActorPool:
    """All actors; those without a task are `idle`, and by the reference of their first answer those that
    are `coming`.
    """

    def __init__(self, make: Callable[[], Any], num_actors: int) -> None:
        self._make = make
        self._actors: list[Any] = []
        self.idle: list[Any] = []
        self.coming: dict[Any, Any] = {}
        self.num_stillborn = 0
        for _ in range(num_actors):
            self._call()

    def mark_ready(self, answer: Any) -> None:
        """Take an actor that has answered; one that died instead is replaced, but not for ever."""
        import ray

        actor = self.coming.pop(answer)
        try:
            ray.get(answer)
        except ray.exceptions.RayError:
            self.num_stillborn += 1
            if self.num_stillborn <= NUM_RETRIES:
                self.replace(actor)
        else:
            self.idle.append(actor)

    def replace(self, actor: Any) -> None:
        """Let another come for one that died."""
        import ray

        self._actors.remove(actor)
        ray.kill(actor)
        self._call()

    def end(self) -> None:
        """End all of them, also one whose task has just failed: an exception's frames would keep it, and
        its place, for as long.
        """
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _call(self) -> None:
        actor = self._make()
        self._actors.append(actor)
        self.coming[actor.answer.remote()] = actor


def gpu_share(num_actors: int, num_gpus: int) -> float:
    """The part of a GPU that each of several actors asks for: the largest with which all find a place, for
    a share lies on one GPU.
    """
    return 1.0 / math.ceil(num_actors / num_gpus) if num_gpus else 0.0


def _next(flying: Iterable[Any], stopping: threading.Event, look: Callable[[], None] = lambda: None) -> Any:
    """The reference of a task that has ended; `look` is called now and then until there is one.
    KeyboardInterrupt once all is to stop.
    """
    import ray

    while True:
        done, _ = ray.wait(list(flying), num_returns=1, timeout=_POLL_S)
        if done:
            return done[0]
        if stopping.is_set():
            raise KeyboardInterrupt
        look()


def _cause(error: Exception) -> BaseException:
    """The exception that the task itself raised, out of Ray's wrapper."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
