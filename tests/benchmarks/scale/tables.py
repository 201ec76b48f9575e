"""The tables of `docs/scale.md`: `python -m tests.benchmarks.scale.tables [TABLE]...`, of those in `TABLES`.

Costs are counted, the others simulated; nothing depends on the machine that prints them.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipelines.experiments.costs import (
    H100_BF16,
    S3Prices,
    archive_load,
    dataset_size,
    face_flops,
    restore_cost,
    training_costs,
)
from pipelines.recipes.presets import paper
from tests.benchmarks.scale import restoring, training
from tests.benchmarks.scale.bucket import Bucket, Trouble
from tests.benchmarks.scale.restoring import Archive, Fleet
from tests.benchmarks.scale.training import Group, Work

DRIVER_S = 0.0017
"""Processor time of the driver for one unit with 1,000 in flight (`measure`)."""
WORKERS = 1000
SAMPLE_S = 0.0046
"""Of TEM at 512 px, forward and backward, on the device of `costs.H100_BF16`."""
SPOT_LIFE_S = 10 * 3600.0
STRAGGLERS = 0.02
UNLIMITED = 1e9


def restoring_rows() -> Iterable[Sequence[str]]:
    """Scenarios of restoring: a slice of 20 units a worker of an archive without end."""
    fleet, free = Fleet(WORKERS), Bucket(rate_limit=UNLIMITED)
    small = Archive(photos=WORKERS * 20 * 16, unit_size=16)
    large = Archive(photos=WORKERS * 20 * 128, unit_size=128)
    spot = replace(fleet, mean_life_s=SPOT_LIFE_S)
    many = Archive(photos=3000 * 20 * 16, unit_size=16)

    def away(seconds: float) -> Bucket:
        return Bucket(rate_limit=UNLIMITED, troubles=(Trouble(25.0, seconds),))

    slow = Bucket(rate_limit=UNLIMITED, troubles=(Trouble(25.0, 600.0, slowdown=10.0),))
    scenarios = [
        ("quiet", fleet, small, free),
        ("three times the workers", replace(fleet, workers=3000), many, Bucket(rate_limit=UNLIMITED)),
        ("a bucket that answers 5,500 requests/s", fleet, small, Bucket()),
        ("the same, units of 128", fleet, large, Bucket()),
        ("units of 128", fleet, large, Bucket(rate_limit=UNLIMITED)),
        ("spot machines, 10 h each", spot, large, Bucket(rate_limit=UNLIMITED)),
        (
            "2 % of the workers 5 times slower",
            replace(fleet, straggler_share=STRAGGLERS),
            large,
            Bucket(rate_limit=UNLIMITED),
        ),
        ("a bucket 10 times slower for 10 min", fleet, large, slow),
        ("a bucket that is away for 10 s", fleet, small, away(10)),
        ("away for 60 s", fleet, small, away(60)),
        ("away for 10 min", fleet, small, away(600)),
        (
            "10 units that kill their worker",
            fleet,
            replace(small, poisonous=frozenset(range(10))),
            Bucket(rate_limit=UNLIMITED),
        ),
    ]
    for title, machines, archive, bucket in scenarios:
        outcome = restoring.simulate(machines, archive, bucket, driver_s=DRIVER_S)
        photos_per_s = archive.photos / outcome.seconds
        yield (
            title,
            f"{photos_per_s:,.0f}",
            f"{outcome.efficiency:.0%}",
            f"{outcome.requests / outcome.seconds:,.0f}",
            f"{outcome.deaths}",
            f"{outcome.failed:,} of {outcome.units:,}",
            f"{outcome.tail_s:.0f}",
        )


def training_rows() -> Iterable[Sequence[str]]:
    """Scenarios of training: TEM of the paper's recipe, whose batch of 64 is the largest of the three."""
    tem = paper().tem.training
    steps = tem.checkpoint_samples // tem.global_batch
    work = Work(tem.num_steps, tem.global_batch, SAMPLE_S, checkpoint_steps=steps)
    often = replace(work, checkpoint_steps=steps // 10)
    wide = Work(tem.num_samples // 1000, 1000, SAMPLE_S, checkpoint_steps=tem.checkpoint_samples // 1000)
    hour = 3600.0
    for title, group, job in [
        ("64 ranks, machines that live", Group(64, 32), work),
        ("64 ranks, 100 h a machine", Group(64, 32, 100 * hour), work),
        ("64 ranks, 10 h a machine", Group(64, 32, 10 * hour), work),
        ("the same, ten times the checkpoints", Group(64, 32, 10 * hour), often),
        ("the same, never fewer than 64 ranks", Group(64, 64, 10 * hour), often),
        ("64 ranks, one of them 1.5 times slower", Group(64, 32), replace(work, slowest=1.5)),
        ("1,000 ranks", Group(1000, 32), work),
        ("1,000 ranks, a batch of 1,000", Group(1000, 500), wide),
        ("the same, 100 h a machine", Group(1000, 500, 100 * hour), wide),
        ("the same, 10 h a machine", Group(1000, 500, 10 * hour), wide),
    ]:
        outcome = training.simulate(group, job)
        done = f"{outcome.steps * job.global_batch / outcome.seconds:,.0f}"
        yield (
            title,
            f"{outcome.computing}",
            "gave up" if outcome.gave_up else done,
            f"{outcome.goodput:.0%}",
            f"{outcome.restarts}",
            f"{outcome.seconds / 3600:.2f}",
        )


SIZES = (("70 k (FFHQ)", 70_000, 8), ("10 M", 10_000_000, 64), ("1 G", 10**9, 1000))
SHARD_S = 0.047
"""Of one core for one photo of 1,024 px, with all columns and digests (`docs/results.md`, sharding)."""
FACES_PER_PHOTO = 1.5


def dataset_rows() -> Iterable[Sequence[str]]:
    """Sharding for a training: three sizes of the paper's recipe."""
    data, prices = paper().data, S3Prices()
    for title, photos, _ in SIZES:
        size = dataset_size(photos, data.shard_size, data.hq_px, data.variants)
        yield (
            title,
            f"{size.shards:,}",
            f"{size.num_bytes / 1e12:,.2f} TB",
            f"{size.num_bytes * prices.per_byte_month:,.0f}",
            f"{photos * SHARD_S / 3600:,.0f}",
        )


def archive_rows() -> Iterable[Sequence[str]]:
    """Restoring: three sizes, mode fast of the paper's cascade."""
    gpu, recipe = H100_BF16, paper()
    for title, photos, gpus in SIZES:
        restored = restore_cost(recipe, photos * FACES_PER_PHOTO, gpu, "fast")
        hours = restored.gpu_hours / gpus
        load = archive_load(photos, photos / hours / 3600, 16, S3Prices())
        yield (
            title,
            f"{gpus}",
            f"{restored.gpu_hours:,.0f}",
            f"{hours:,.1f}",
            f"{restored.usd:,.0f}",
            f"{load.requests_per_s:,.0f}",
            f"{load.usd:,.0f}",
            f"{load.driver_bytes / 1e9:,.1f} GB",
            f"{load.journal_bytes / 1e9:,.1f} GB",
            f"{hours * gpus / (SPOT_LIFE_S / 3600):,.0f}",
        )


TABLES = {
    "datasets": (("photos", "shards", "bytes", "USD a month", "core-hours to shard"), dataset_rows),
    "archives": (
        (
            "photos",
            "GPUs",
            "GPU-hours",
            "hours",
            "USD",
            "requests/s",
            "USD for them",
            "driver's memory",
            "journal",
            "machines lost",
        ),
        archive_rows,
    ),
    "restoring": (
        ("scenario", "photos/s", "efficiency", "requests/s", "workers lost", "units failed", "tail (s)"),
        restoring_rows,
    ),
    "training": (
        ("scenario", "ranks that compute", "samples/s", "goodput", "restarts", "hours"),
        training_rows,
    ),
}


def main(wanted: Sequence[str]) -> None:
    for name in wanted or TABLES:
        head, rows = TABLES[name]
        print(f"| {' | '.join(head)} |")
        print("|" + "---|" * len(head))
        for row in rows():
            print(f"| {' | '.join(row)} |", flush=True)
        print()
    if "archives" in (wanted or TABLES):
        for stage, cost in training_costs(paper(), H100_BF16).items():
            print(f"train {stage}: {cost.gpu_hours:,.0f} GPU-hours, {cost.usd:,.0f} USD")
        print(f"a face: {face_flops(paper(), 'fast') / 1e12:.1f} TFLOP")


if __name__ == "__main__":
    main(sys.argv[1:])
