"""A double of Ray on a clock that jumps, so that the product's own scheduler runs with a thousand workers
in seconds.

`virtual(ray)` puts it in the place of the module `ray` and of the clock of `pipelines.cluster`; then
`pipelines.cluster.pool.run_actors` is the code of the product, and only machines, tasks and time are
simulated.
"""

import heapq
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

from pipelines.cluster import capacity, pool


class RayError(Exception):
    """The double of `ray.exceptions.RayError`: the actor is gone."""


class RayTaskError(RayError):
    """The double of `ray.exceptions.RayTaskError`: the task raised `cause`."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class World(Protocol):
    """What happens outside the scheduler."""

    def start_s(self, actor: int, now: float) -> float:
        """Seconds until a new actor answers, the wait for a machine included."""

    def life_s(self, actor: int) -> float:
        """Seconds from its request to the loss of the actor's machine; infinite for never."""

    def run(self, actor: int, task: Any, now: float) -> "TaskEnd":
        """Run a task that begins at `now`."""

    @property
    def driver_s(self) -> float:
        """Seconds of the driver for one report."""


@dataclass(frozen=True)
class TaskEnd:
    """When a task ends, with what; `kills` if it takes its actor with it."""

    at: float
    result: Any = None
    error: BaseException | None = None
    kills: bool = False


@dataclass(eq=False)
class Reference:
    """A call; `done` once its result or error is known."""

    result: Any = None
    error: BaseException | None = None
    done: bool = False


class VirtualRay(ModuleType):
    """Actors, references and time; what `pool` uses of the module `ray`."""

    def __init__(self, world: World) -> None:
        super().__init__("ray")
        self.world = world
        self.now = 0.0
        self.deaths = 0
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._finished: deque[Reference] = deque()

    def remote(self, **resources: float) -> Callable[[type], Any]:
        """`ray.remote(num_cpus=.., num_gpus=..)(Class)`; the class is not used: `World.run` is its method."""
        return lambda cls: SimpleNamespace(remote=lambda *arguments: _Actor(self, next(self._numbers)))

    def available_resources(self) -> Mapping[str, float]:
        return {"CPU": 0.0, "GPU": 0.0}

    def is_initialized(self) -> bool:
        return False

    def wait(
        self, references: Iterable[Reference], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Reference], list[Reference]]:
        """Go on to the first call that ends, at most `timeout` seconds."""
        until = float("inf") if timeout is None else self.now + timeout
        while not self._finished:
            if not self._events or self._events[0][0] > until:
                self.now = until
                return [], list(references)
            at, _, event = heapq.heappop(self._events)
            self.now = max(self.now, at)
            event()
        return [self._finished.popleft()], []

    def get(self, reference: Reference) -> Any:
        """The result of a call that has ended; takes the driver's time."""
        assert reference.done
        self.now += self.world.driver_s
        if reference.error is not None:
            raise reference.error
        return reference.result

    def kill(self, actor: "_Actor") -> None:
        """End an actor; its call ends with an error."""
        actor.lose()

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Do something at a time."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def finish(self, reference: Reference) -> None:
        """A call has ended: the next `wait` returns it."""
        reference.done = True
        self._finished.append(reference)


class _Actor:
    """An actor: one call at a time, until its machine is lost or a task kills it."""

    def __init__(self, ray: VirtualRay, number: int) -> None:
        self._ray = ray
        self._number = number
        self._current: Reference | None = None
        self.alive = True
        self.ping = SimpleNamespace(remote=self._ping)
        self.run = SimpleNamespace(remote=self._run)

    def _ping(self) -> Reference:
        reference = self._current = Reference()
        ready = self._ray.now + self._ray.world.start_s(self._number, self._ray.now)
        self._ray.at(ready, lambda: self._end(reference, TaskEnd(ready)))
        lost = self._ray.now + self._ray.world.life_s(self._number)
        if lost < float("inf"):
            self._ray.at(lost, self._die)
        return reference

    def _run(self, task: Any) -> Reference:
        reference = self._current = Reference()
        if not self.alive:  # it was lost while it was idle; Ray tells at the next call
            reference.error = RayError("the actor died")
            self._ray.at(self._ray.now, lambda: self._ray.finish(reference))
            return reference
        end = self._ray.world.run(self._number, task, self._ray.now)
        self._ray.at(end.at, lambda: self._end(reference, end))
        return reference

    def _end(self, reference: Reference, end: TaskEnd) -> None:
        if not self.alive or self._current is not reference:
            return
        if end.kills:
            self._die()
            return
        self._current = None
        reference.result = end.result
        reference.error = None if end.error is None else RayTaskError(end.error)
        self._ray.finish(reference)

    def _die(self) -> None:
        self._ray.deaths += self.alive
        self.lose()

    def lose(self) -> None:
        """The machine is lost, or the actor is killed."""
        if not self.alive:
            return
        self.alive = False
        if self._current is not None:
            reference, self._current = self._current, None
            reference.error = RayError("the actor died")
            self._ray.finish(reference)


@contextmanager
def virtual(ray: VirtualRay) -> Iterator[None]:
    """Put the double and its clock in the place of the real ones."""
    clock = SimpleNamespace(monotonic=lambda: ray.now, sleep=_no_sleep)
    saved = {name: sys.modules.get(name) for name in ("ray",)}
    clocks = [(module, module.time) for module in (pool, capacity)]
    sys.modules["ray"] = ray
    for module, _ in clocks:
        module.time = clock  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, real in clocks:
            module.time = real
        for name, found in saved.items():
            if found is None:
                del sys.modules[name]
            else:
                sys.modules[name] = found


def _no_sleep(seconds: float) -> None:
    raise AssertionError("the scheduler sleeps nowhere; a simulated task has its own clock")
