"""The simulations of scale against closed forms, and their findings in small; `test_scale_real.py` compares
with Ray."""

import math
from dataclasses import replace

import pytest

from pipelines.cluster import pool
from pipelines.experiments.costs import (
    H100_BF16,
    S3Prices,
    archive_load,
    cost,
    dataset_size,
    face_flops,
    training_costs,
)
from pipelines.recipes.presets import paper, smoke
from pipelines.storage import s3
from tests.benchmarks.scale import restoring, training
from tests.benchmarks.scale.bucket import Bucket, BucketError, Trouble
from tests.benchmarks.scale.measure import PhotoCost, of_one_more, outcome_bytes
from tests.benchmarks.scale.restoring import Archive, Fleet
from tests.benchmarks.scale.training import Group, Work

FREE = 1e9
"""A limit of requests that nothing reaches."""
SMALL = Archive(photos=20 * 160, unit_size=16, photo_s=0.1)


def fleet(workers: int = 20, **changes: float) -> Fleet:
    return replace(Fleet(workers, load_s=0.0, replacement_s=0.0), **changes)  # type: ignore[arg-type]


def test_equal_units_take_as_many_rounds_as_there_are_units_for_each_worker() -> None:
    bucket = Bucket(latency_s=0.0, rate_limit=FREE)
    outcome = restoring.simulate(fleet(), SMALL, bucket, driver_s=0.0)
    assert outcome.seconds == pytest.approx(10 * 1.6)
    assert outcome.efficiency == pytest.approx(1.0)
    assert outcome.requests == SMALL.photos * 2 + SMALL.units * 2


def test_the_driver_is_the_limit_when_its_time_is_that_of_all_units() -> None:
    bucket = Bucket(latency_s=0.0, rate_limit=FREE)
    outcome = restoring.simulate(fleet(200), SMALL, bucket, driver_s=0.1)
    assert outcome.seconds == pytest.approx(0.1 * (SMALL.units + 200), rel=0.1)


def test_machines_that_are_lost_cost_half_a_unit_each_and_no_photo() -> None:
    """Of lives that end at random moments, the work in hand is lost: half a unit on the mean."""
    long = Archive(photos=20 * 16 * 200, unit_size=16, photo_s=1.0)
    quiet = restoring.simulate(fleet(), long, Bucket(0.0, FREE), driver_s=0.0)
    lossy = restoring.simulate(fleet(mean_life_s=400.0), long, Bucket(0.0, FREE), driver_s=0.0)
    assert lossy.failed == 0
    assert 100 < lossy.deaths < 250
    assert (lossy.seconds - quiet.seconds) * 20 == pytest.approx(lossy.deaths * 16 / 2, rel=0.25)


def test_a_unit_that_kills_its_workers_fails_after_the_product_s_retries_and_no_other_does() -> None:
    poisoned = replace(SMALL, poisonous=frozenset({3, 50}))
    outcome = restoring.simulate(fleet(), poisoned, Bucket(0.0, FREE))
    assert outcome.failed == 2
    assert outcome.deaths == 2 * (pool.NUM_RETRIES + 1)


def test_slow_workers_leave_a_tail() -> None:
    quiet = restoring.simulate(fleet(), SMALL, Bucket(0.0, FREE))
    slow = restoring.simulate(fleet(straggler_share=0.2), SMALL, Bucket(0.0, FREE), seed=1)
    assert slow.efficiency < 0.9
    assert slow.tail_s > 3 * quiet.tail_s


def test_a_short_absence_of_the_bucket_is_survived_and_a_long_one_burns_the_queue() -> None:
    """A unit fails when the bucket is away for longer than all retries last, and each worker takes the next
    one."""
    away = restoring.simulate(fleet(), SMALL, Bucket(0.0, FREE, (Trouble(4.0, 10.0),)))
    assert away.failed == 0
    patience = sum(pool.BACKOFF_S) + (1 + len(pool.BACKOFF_S)) * sum(
        s3._PAUSE_S * 2**n for n in range(s3._TRIES - 1)
    )
    long = restoring.simulate(fleet(), SMALL, Bucket(0.0, FREE, (Trouble(4.0, 3 * patience),)))
    assert 2 * 20 <= long.failed <= 4 * 20, "all workers fail a unit about every 27 s"


def test_a_bucket_that_is_asked_too_often_refuses_and_is_asked_again() -> None:
    bucket = Bucket(latency_s=0.01, rate_limit=2)
    times = [bucket.request(10.0) for _ in range(3)]
    assert times[:2] == [10.01, 10.01]
    assert times[2] > 11.0, "in the next second"
    with pytest.raises(BucketError):
        Bucket(troubles=(Trouble(0.0, 1000.0),)).request(1.0)


def test_goodput_of_a_training_is_that_of_the_closed_form() -> None:
    """Poisson losses, work lost back to the checkpoint, and a restart for each: (exp(rT) - 1) (1/r + R) a
    checkpoint."""
    rate, restart, interval = 1 / 500.0, 30.0, 100
    group = Group(1, 1, 1 / rate, restart, replacement_s=0.0)
    work = Work(interval * 3000, 1, 1.0, checkpoint_steps=interval)
    outcome = training.simulate(group, work, seed=1)
    assert not outcome.gave_up
    expected = 3000 * math.expm1(rate * interval) * (1 / rate + restart)
    assert outcome.seconds == pytest.approx(expected, rel=0.03)
    assert outcome.goodput == pytest.approx(work.steps / expected, rel=0.05)


def test_a_training_gives_up_where_no_attempt_comes_further() -> None:
    outcome = training.simulate(
        Group(1000, 1000, 3600.0, 60.0), Work(10_000, 1000, 5.0, checkpoint_steps=1000)
    )
    assert outcome.gave_up


def test_more_ranks_than_the_batch_has_samples_do_not_compute() -> None:
    work = Work(100, 64, 0.01)
    assert training.simulate(Group(1000, 1), work).computing == 64
    assert training.step_seconds(work, 1000) == training.step_seconds(work, 64)
    assert training.step_seconds(work, 63) == 1.5 * training.step_seconds(work, 64), (
        "half of them, for even shares"
    )


@pytest.mark.slow
def test_costs_are_operations_over_what_a_device_does() -> None:
    gpu = replace(H100_BF16, peak_flops=1e12, utilisation=0.5, usd_per_hour=2.0)
    one = cost(1.8e15, gpu)
    assert (one.gpu_hours, one.usd) == (1.0, 2.0)
    assert cost(1.8e15, gpu, goodput=0.5).gpu_hours == 2.0
    assert (one + one).usd == 4.0
    costs = training_costs(paper(), gpu)
    assert set(costs) == {"irm1", "irm2", "tem"}
    assert face_flops(smoke(), "faithful") > 50 * face_flops(smoke(), "fast")


def test_sizes_and_loads_are_proportional() -> None:
    assert dataset_size(70_000, 250, 512, 8).shards == 280
    one, ten = (archive_load(number, 10.0, 16, S3Prices()) for number in (1600, 16_000))
    assert ten.units == 10 * one.units
    assert ten.usd == pytest.approx(10 * one.usd)
    assert one.requests_per_s == ten.requests_per_s == pytest.approx(45.0)


def test_the_cost_of_one_photo_more_leaves_out_what_every_archive_costs() -> None:
    few, many = (PhotoCost(2 + 7 / n, 1.0, 1.0, 5 / n, 0.0, 600.0) for n in (10, 30))
    each = of_one_more(few, 10, many, 30)
    assert each.gets == pytest.approx(2)
    assert each.lists == pytest.approx(0)
    assert 500 < outcome_bytes(200) < 5000
