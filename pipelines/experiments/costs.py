"""What a recipe or an archive takes: operations, GPU-hours, money, shards, requests. `docs/scale.md` has
the tables.

Operations are counted on the network itself (`diffbfr.cost.flops`). Everything that depends on a machine or
a price is a field with a default that says where it is from, so that a reader puts in figures of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffbfr.cost.flops import evaluation_flops, training_flops
from diffbfr.stages import STAGE_NAMES, Mode, StageName, StageSpec
from pipelines.recipes.recipe import Recipe

SECONDS_PER_HOUR = 3600
JOURNAL_BYTES = 650
"""Of one restored photo in the record of its unit, as JSON; `tests.benchmarks.scale.measure` counts it."""
DRIVER_BYTES = 1_135
"""Of one listed photo and its outcome in the driver's memory, from the same."""
REQUESTS = {"GET": 2.3, "HEAD": 1.1, "PUT": 1.1}
"""Of one photo that is restored from S3 to S3, from the same."""
HQ_BYTES_PER_PIXEL = 1.9
"""Of a lossless WebP of a face: 500 kB at 512 px (`docs/results.md`, sharding)."""
LQ_BYTES = 6_600
"""Of a degraded variant of a procedural face of 512 px, on the mean; its share of a dataset is small."""


@dataclass(frozen=True)
class Gpu:
    """A device: its peak for the arithmetic that is used, the share of it that networks reach, and its
    price an hour.

    The share is to be measured: `python -m tests.benchmarks.networks` prints seconds of a step, which with
    `training_flops` give it.
    """

    name: str
    peak_flops: float
    utilisation: float
    usd_per_hour: float

    @property
    def flops_per_hour(self) -> float:
        """Operations that one device does in an hour of work."""
        return self.peak_flops * self.utilisation * SECONDS_PER_HOUR


H100_BF16 = Gpu("H100", peak_flops=989e12, utilisation=0.25, usd_per_hour=3.0)
"""Dense bf16 of the data sheet; the share is an assumption for convolutional U-Nets; the price is that of
an hour on demand at the cheaper clouds."""


@dataclass(frozen=True)
class S3Prices:
    """Dollars of an object store; the defaults are the list prices of Amazon S3 Standard, us-east-1."""

    per_put: float = 5e-6
    per_get: float = 4e-7
    per_byte_month: float = 0.023e-9


@dataclass(frozen=True)
class Cost:
    """Operations of some work, the GPU-hours they take, and their price."""

    flops: float
    gpu_hours: float
    usd: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.gpu_hours + other.gpu_hours, self.usd + other.usd)


def cost(flops: float, gpu: Gpu, goodput: float = 1.0) -> Cost:
    """The cost of so many operations, of which `goodput` are not made twice."""
    hours = flops / gpu.flops_per_hour / goodput
    return Cost(flops, hours, hours * gpu.usd_per_hour)


def training_costs(recipe: Recipe, gpu: Gpu, goodput: float = 1.0) -> Mapping[StageName, Cost]:
    """The cost of training each stage."""
    costs = {}
    for name in STAGE_NAMES:
        stage, training = recipe.stage(name).stage, recipe.stage(name).training
        flops = training_flops(stage.unet, training.num_samples) * training.area_share(stage.px)
        costs[name] = cost(flops, gpu, goodput)
    return costs


def face_flops(recipe: Recipe, mode: Mode | None = None) -> float:
    """Operations of restoring one face: the evaluations of all three stages."""
    chosen = mode or recipe.sampling.mode
    stages = [recipe.stage(name).stage for name in STAGE_NAMES]
    return sum(evaluation_flops(stage.unet) * num_evaluations(stage, chosen) for stage in stages)


def num_evaluations(stage: StageSpec, mode: Mode) -> int:
    """Evaluations of a stage's network for one face: every step from its start, or those of the few-step
    solver."""
    return stage.start if mode == "faithful" else stage.fast.num_evaluations


def restore_cost(recipe: Recipe, num_faces: float, gpu: Gpu, mode: Mode | None = None) -> Cost:
    """The cost of the networks of a restoration."""
    return cost(face_flops(recipe, mode) * num_faces, gpu)


@dataclass(frozen=True)
class ArchiveLoad:
    """What restoring an archive asks of the object store and the driver, besides the networks."""

    units: int
    requests_per_s: float
    journal_bytes: float
    driver_bytes: float
    usd: float


def archive_load(num_photos: int, photos_per_s: float, unit_size: int, prices: S3Prices) -> ArchiveLoad:
    """Requests, journal and driver memory of an archive of single objects on S3."""
    reads, puts = REQUESTS["GET"] + REQUESTS["HEAD"], REQUESTS["PUT"]
    return ArchiveLoad(
        -(-num_photos // unit_size),
        (reads + puts) * photos_per_s,
        num_photos * JOURNAL_BYTES,
        num_photos * DRIVER_BYTES,
        num_photos * (puts * prices.per_put + reads * prices.per_get),
    )


@dataclass(frozen=True)
class DatasetSize:
    """Shards and bytes of a dataset."""

    shards: int
    num_bytes: float


def dataset_size(num_faces: int, shard_size: int, hq_px: int, variants: int) -> DatasetSize:
    """Size of a dataset: ground truths at two sizes (the small one a quarter as wide), and the variants."""
    pixels = hq_px**2 * (1 + 1 / 16)
    num_bytes = num_faces * (pixels * HQ_BYTES_PER_PIXEL + variants * LQ_BYTES)
    return DatasetSize(-(-num_faces // shard_size), num_bytes)
