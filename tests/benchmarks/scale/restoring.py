"""The restoration of an archive on many workers: the product's scheduler and retries, on simulated
machines.

`pipelines.cluster.pool.run_actors`, `Collector` and `with_retries` are the product's; a unit of photos is a
sequence of requests and the time of the networks.
"""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from diffbfr.errors import IncompleteError
from pipelines.cluster import pool
from pipelines.cluster.hangs import HangWatch
from pipelines.progress import Progress
from tests.benchmarks.scale.bucket import Bucket, BucketError
from tests.benchmarks.scale.virtual_ray import TaskEnd, VirtualRay, virtual

NEVER = float("inf")


@dataclass(frozen=True)
class Fleet:
    """Machines: how long one lives, when another comes, how long an actor loads, and how many are slow."""

    workers: int = 1000
    mean_life_s: float = NEVER
    replacement_s: float = 120.0
    load_s: float = 20.0
    straggler_share: float = 0.0
    straggler_slowdown: float = 5.0


@dataclass(frozen=True)
class Archive:
    """Photos in units: the networks' seconds for a photo's faces, and its requests."""

    photos: int = 1_000_000
    unit_size: int = 16
    photo_s: float = 0.12
    requests_per_photo: int = 2
    requests_per_unit: int = 2
    poisonous: frozenset[int] = frozenset()
    """Units that kill each worker that tries them."""
    kills_once: tuple[tuple[int, float], ...] = ()
    """Units that kill the first worker that tries them, after so many seconds."""

    @property
    def units(self) -> int:
        return -(-self.photos // self.unit_size)


@dataclass(frozen=True)
class Outcome:
    """How a restoration went; `efficiency` is the networks' time against that of all workers."""

    seconds: float
    units: int
    failed: int
    deaths: int
    requests: int
    refused: int
    efficiency: float
    tail_s: float
    """From the moment when the queue is empty to the end."""

    @property
    def hours(self) -> float:
        return self.seconds / 3600


@dataclass
class _World:
    """Machines, tasks and the bucket, as `VirtualRay` asks for them."""

    fleet: Fleet
    archive: Archive
    bucket: Bucket
    driver_s: float
    random: random.Random
    duration: Callable[[int], float] | None = None
    last_begin: float = 0.0
    killed: set[int] = field(default_factory=set)
    _slow: dict[int, bool] = field(default_factory=dict)

    def start_s(self, actor: int, now: float) -> float:
        came_later = actor >= self.fleet.workers
        return self.fleet.load_s + (self.fleet.replacement_s if came_later else 0.0)

    def life_s(self, actor: int) -> float:
        if self.fleet.mean_life_s == NEVER:
            return NEVER
        return self.random.expovariate(1 / self.fleet.mean_life_s)

    def run(self, actor: int, task: int, now: float) -> TaskEnd:
        self.last_begin = max(self.last_begin, now)
        clock = _WorkerClock(now)
        after_s = dict(self.archive.kills_once).get(task)
        if after_s is not None and task not in self.killed:
            self.killed.add(task)
            return TaskEnd(now + after_s, kills=True)
        if task in self.archive.poisonous:
            return TaskEnd(now + self._networks_s(actor, task) / 2, kills=True)
        saved, pool.time = pool.time, SimpleNamespace(sleep=clock.sleep)  # type: ignore[assignment]
        try:
            pool.with_retries(lambda unit: self._attempt(actor, unit, clock), task)
        except BucketError as error:
            return TaskEnd(clock.now, error=error)
        finally:
            pool.time = saved
        return TaskEnd(clock.now, result=task)

    def _attempt(self, actor: int, task: int, clock: "_WorkerClock") -> int:
        archive, photos = self.archive, self.archive.unit_size
        try:
            for _ in range(photos * archive.requests_per_photo // 2):  # reading
                clock.now = self.bucket.request(clock.now)
            clock.now += self._networks_s(actor, task)
            for _ in range(photos * archive.requests_per_photo // 2 + archive.requests_per_unit):
                clock.now = self.bucket.request(clock.now)
        except BucketError as error:
            clock.now = error.at
            raise
        return task

    def _networks_s(self, actor: int, task: int) -> float:
        if self.duration is not None:
            return self.duration(task)
        if actor not in self._slow:
            self._slow[actor] = self.random.random() < self.fleet.straggler_share
        slowdown = self.fleet.straggler_slowdown if self._slow[actor] else 1.0
        return self.archive.photo_s * self.archive.unit_size * slowdown


@dataclass
class _WorkerClock:
    """The time of one worker."""

    now: float

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _no_factory() -> Callable[[int], int]:
    raise AssertionError("`_World.run` runs the units")


def simulate(
    fleet: Fleet,
    archive: Archive,
    bucket: Bucket,
    *,
    driver_s: float = 0.002,
    seed: int = 0,
    duration: Callable[[int], float] | None = None,
) -> Outcome:
    """Run the scheduler over all units; `duration` gives a unit's seconds instead of the archive's."""
    world = _World(fleet, archive, bucket, driver_s, random.Random(seed), duration)
    ray = VirtualRay(world)
    units: list[Any] = list(range(archive.units))
    failed = 0
    with virtual(ray):
        progress = Progress("restore", archive.photos, "photos", stream=io.StringIO(), clock=lambda: ray.now)
        collector = pool.Collector[int, int]("restore", units, lambda unit: archive.unit_size, progress, None)
        hangs = HangWatch("restore", clock=lambda: ray.now)
        pool.run_actors(_no_factory, collector, fleet.workers, 1, 0.0, lambda: None, hangs)
        try:
            collector.reports()
        except IncompleteError:
            failed = collector.num_failed
    work = archive.photo_s * archive.photos if duration is None else sum(map(duration, units))
    return Outcome(
        ray.now,
        archive.units,
        failed,
        ray.deaths,
        bucket.requests,
        bucket.refused,
        work / (ray.now * fleet.workers),
        ray.now - world.last_begin,
    )
