"""A training on many workers: the product's monitor, its limit of fruitless attempts and its active ranks.

`pipelines.cluster.monitor.TrainingMonitor` counts attempts, restarts and goodput on a simulated clock;
`diffbfr.training.active_ranks.num_active` says how many ranks compute. Machines are lost at random; all
ranks then go on from the newest checkpoint, with fewer of them as long as another machine has not come.
"""

import itertools
import random
from dataclasses import dataclass

from diffbfr.training.active_ranks import num_active
from pipelines.cluster.monitor import RankHeartbeat, TrainingMonitor
from pipelines.cluster.trainer import NUM_RETRIES, RESIZE_S

NEVER = float("inf")


@dataclass(frozen=True)
class Group:
    """Ranks and their machines; `restart_s` is from a lost rank to the next step."""

    ranks: int
    min_ranks: int
    mean_life_s: float = NEVER
    restart_s: float = 60.0
    replacement_s: float = 120.0


@dataclass(frozen=True)
class Work:
    """Steps of one training: the seconds of a step on one rank that has the whole batch, and what it costs
    more."""

    steps: int
    global_batch: int
    sample_s: float
    reduce_s: float = 0.01
    checkpoint_steps: int = 500
    slowest: float = 1.0
    """The slowest rank against a usual one: all others wait for it in each step."""


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went; `gave_up` after too many attempts without a new step."""

    seconds: float
    steps: int
    restarts: int
    goodput: float
    computing: int
    gave_up: bool


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step_seconds(work: Work, ranks: int) -> float:
    """Seconds of a step: the largest share of the batch, and the sum of the gradients."""
    active = num_active(ranks, work.global_batch)
    return work.global_batch / active * work.sample_s * work.slowest + (work.reduce_s if active > 1 else 0.0)


def simulate(group: Group, work: Work, *, seed: int = 0, limit_s: float = 3e7) -> TrainingOutcome:
    """Train to the end, or until the product would give up."""
    clock, chance = _Clock(), random.Random(seed)
    monitor = TrainingMonitor(clock)
    step, ranks, gave_up = 0, group.ranks, False
    came_back: list[float] = []  # when lost machines are replaced
    processes = itertools.count()  # the monitor drops what comes of an attempt that has ended
    while step < work.steps and clock.now < limit_s:
        if monitor.begin_attempt(0, ranks) > NUM_RETRIES:
            gave_up = True
            break
        clock.now += group.restart_s
        step, grows = _attempt(monitor, clock, chance, group, work, step, ranks, came_back, next(processes))
        if step >= work.steps:
            break
        if not grows:
            monitor.record_failure("a machine was lost")
            came_back.append(clock.now + group.replacement_s)
        came_back = [at for at in came_back if at > clock.now]
        ranks = group.ranks - len(came_back)
        if ranks < group.min_ranks:
            came_back.sort()
            wait_for = len(came_back) - (group.ranks - group.min_ranks)
            clock.now = came_back[wait_for - 1]
            came_back = came_back[wait_for:]
            ranks = group.min_ranks
    stats = monitor.restart_stats()
    active = num_active(group.ranks, work.global_batch)
    return TrainingOutcome(clock.now, step, stats.restarts, stats.goodput, active, gave_up)


def _attempt(
    monitor: TrainingMonitor,
    clock: _Clock,
    chance: random.Random,
    group: Group,
    work: Work,
    first: int,
    ranks: int,
    came_back: list[float],
    process: int,
) -> tuple[int, bool]:
    """Steps until a machine is lost, another has come, or all are done; the step to go on from, and why it
    ended."""
    each_s = step_seconds(work, ranks)
    lost_at = NEVER
    if group.mean_life_s < NEVER:
        lost_at = clock.now + chance.expovariate(ranks / group.mean_life_s)
    # Ray Train looks now and then whether there is room for more ranks, and then ends the group.
    grows_at = NEVER if not came_back else max(clock.now, min(came_back)) + RESIZE_S
    ends_at = min(lost_at, grows_at)
    can_do = work.steps - first
    steps = can_do if ends_at == NEVER else min(can_do, int((ends_at - clock.now) / each_s))
    if steps:  # the first heartbeat comes after the first step; those between it and the last add up
        for step, done in ((first + 1, 1), (first + steps, steps - 1)):
            clock.now += done * each_s
            monitor.record_heartbeat(RankHeartbeat(0, process, "node", step, NEVER))
    if steps == can_do:
        return work.steps, False
    clock.now = max(clock.now, ends_at)
    reached = first + steps
    return reached - reached % work.checkpoint_steps, grows_at < lost_at
