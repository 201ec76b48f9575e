"""The pool of actors on a cluster with less room than was asked for, simulated in this process."""

import itertools
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from diffbfr.errors import IncompleteError
from pipelines.cluster import capacity, pool
from pipelines.progress import Progress


class RayError(Exception): ...


class RayTaskError(RayError): ...


class RayActorError(RayError): ...


class OutOfMemoryError(RayError): ...


class Call:
    """A call of an actor, as a reference for `get` and `wait`."""

    def __init__(self, function: Callable[[], Any], ends: bool) -> None:
        self.function, self.ends = function, ends


class NarrowRay:
    """The part of Ray that the pool uses, with room for `room` actors: calls of any further one never end.

    An actor that dies leaves no room.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError)

    def __init__(self, room: int, dies_at_start: bool = False, empty_waits: int = 0) -> None:
        self.room = room
        self.dies_at_start = dies_at_start
        self.empty_waits = empty_waits
        self.killed: list[Any] = []

    def remote(self, **resources: float) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda factory: self._place(kind(factory)))

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        if self.empty_waits:  # others have the cores
            self.empty_waits -= 1
            return [], list(calls)
        done = [call for call in calls if call.ends]
        assert done, "this would wait for ever"
        return done[:num_returns], []

    def get(self, call: Call) -> Any:
        return call.function()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.0 if self.empty_waits else 4.0}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def _place(self, worker: Any) -> Any:
        placed, self.room = self.room > 0, self.room - 1
        ping = self._die if self.dies_at_start else worker.ping
        return SimpleNamespace(
            ping=SimpleNamespace(remote=lambda: Call(ping, placed)),
            run=SimpleNamespace(remote=lambda task: Call(partial(worker.run, task), placed)),
        )

    def _die(self) -> None:
        raise RayActorError


def run(ray: NarrowRay, function: Callable[[int], int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Five tasks on a pool of three actors."""
    monkeypatch.setitem(sys.modules, "ray", ray)
    collector = pool.Collector[int, int](
        "square", range(5), lambda task: 1, Progress("square", 5, "items"), None
    )
    pool.run_actors(lambda: function, collector, 3, 1, 0.0, lambda: None)
    return collector.reports()


def test_actors_that_find_no_room_keep_no_task_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(NarrowRay(room=1), lambda task: task**2, monkeypatch) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("death", [RayActorError, OutOfMemoryError])
def test_the_task_of_an_actor_that_is_lost_or_out_of_memory_is_done_by_another(
    monkeypatch: pytest.MonkeyPatch, death: type[RayError]
) -> None:
    tried: list[int] = []

    def square(task: int) -> int:
        tried.append(task)
        if tried.count(1) == 1 == task:
            raise death
        return task**2

    assert run(NarrowRay(room=3), square, monkeypatch) == [0, 1, 4, 9, 16]
    assert sorted(tried) == [0, 1, 1, 2, 3, 4]


def test_actors_that_never_live_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompleteError, match="6 workers died before they began; expected them to live"):
        run(NarrowRay(room=9, dies_at_start=True), abs, monkeypatch)


@pytest.mark.parametrize("num_gpus", range(5))
@pytest.mark.parametrize("num_actors", range(1, 10))
def test_every_actor_finds_a_gpu_that_has_room_for_its_share(num_actors: int, num_gpus: int) -> None:
    share = Fraction(pool.gpu_share(num_actors, num_gpus)).limit_denominator(100)
    if num_gpus:
        assert 0 < share <= 1
        assert int(1 / share) * num_gpus >= num_actors
        assert num_actors > num_gpus or share == 1
    else:
        assert share == 0


def test_actors_that_all_wait_for_cores_say_so_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the last of three minutes there are cores: workers that begin are no reason to add machines."""
    minutes = itertools.count(step=60.0)
    monkeypatch.setattr(capacity.time, "monotonic", lambda: next(minutes))
    assert run(NarrowRay(room=3, empty_waits=3), lambda task: task**2, monkeypatch) == [0, 1, 4, 9, 16]
    assert [record.getMessage() for record in caplog.records] == [
        "square: waiting for 3 workers of 1 CPUs each; the cluster has 4 CPUs, 4 of them in use; it goes on when "
        "other work frees them, or add machines"
    ] * 2


@pytest.mark.parametrize(
    ("total", "free", "found", "advice"),
    [
        (3.0, 3.0, "has 3 CPUs, 0 of them in use", "add machines, or stop and lower cluster.num_workers"),
        (8.0, 3.0, "has 8 CPUs, 5 of them in use", "it goes on when other work frees them, or add machines"),
        (8.0, 4.0, "has 8 CPUs, 4 of them in use", "these suffice, so the start is slow, or a GPU"),
    ],
)
def test_what_waiting_work_advises_follows_from_the_cores(
    total: float,
    free: float,
    found: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cores = SimpleNamespace(
        cluster_resources=lambda: {"CPU": total}, available_resources=lambda: {"CPU": free}
    )
    monkeypatch.setitem(sys.modules, "ray", cores)
    minutes = itertools.count(step=60.0)
    monkeypatch.setattr(capacity.time, "monotonic", lambda: next(minutes))
    capacity.CapacityWarning("irm1", 2, 2).check(False, lambda: True)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"irm1: waiting for 2 workers of 2 CPUs each; the cluster {found}; {advice}")


def test_tasks_without_any_core_say_so_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class EmptyRay(NarrowRay):
        def remote(self, **options: float) -> Callable[[Callable[[int], int]], Any]:
            return lambda function: SimpleNamespace(
                remote=lambda task: Call(partial(function, task), ends=True)
            )

        def available_resources(self) -> dict[str, float]:
            return self.cluster_resources()

        def cluster_resources(self) -> dict[str, float]:
            return {} if self.empty_waits else {"CPU": 1.0}

    minutes = itertools.count(step=60.0)
    monkeypatch.setattr(capacity.time, "monotonic", lambda: next(minutes))
    monkeypatch.setitem(sys.modules, "ray", EmptyRay(room=1, empty_waits=3))
    collector = pool.Collector[int, int](
        "shard", range(3), lambda task: 1, Progress("shard", 3, "items"), None
    )
    pool.run_tasks(lambda task: task**2, collector, 2, lambda: None)
    assert collector.reports() == [0, 1, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "shard: waiting for 2 workers of 1 CPUs each; the cluster has 0 CPUs, 0 of them in use; add machines, or "
        "stop and lower cluster.num_workers"
    ] * 2
