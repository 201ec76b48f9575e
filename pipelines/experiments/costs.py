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
BYTES_PER_CACHED_FILE = 2.4e3
"""Of the journal, one photo that was restored: a row of its unit's record, as JSON."""


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
    return sum(
        evaluation_flops(stage.unet) * num_evaluations(stage, chosen)
        for stage in (recipe.stage(name).stage for name in STAGE_NAMES)
    )


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
    puts: int
    gets: int
    requests_per_s: float
    journal_bytes: float
    usd: float


def archive_load(
    num_photos: int, photos_per_s: float, unit_size: int, prices: S3Prices, reads_per_photo: int = 2
) -> ArchiveLoad:
    """Requests and journal of an archive of single objects: each photo is read, its output written, a unit
    committed.

    A photo is read once to compare its digest where sizes are equal, and once to be restored.
    """
    units = -(-num_photos // unit_size)
    puts, gets = num_photos + 2 * units, num_photos * reads_per_photo
    return ArchiveLoad(
        units,
        puts,
        gets,
        (puts + gets) / num_photos * photos_per_s,
        num_photos * BYTES_PER_CACHED_FILE,
        puts * prices.per_put + gets * prices.per_get,
    )
