"""The trainings that all tables share: for each seed the three stages of the cascade, and IRM-s.

The cascade is trained by the product's own pipeline under ROOT, which reuses what is there. IRM-2 is trained
over every t, because the tables start it everywhere. IRM-s is the network of IRM-2, conditioned on the
low-quality face, over as many samples.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.images import Pixels
from diffbfr.shards import ShardedDataset
from diffbfr.spec import digest
from diffbfr.stages import StageSpec
from diffbfr.training.config import Precision, TrainingConfig
from diffbfr.training.loop import Run, train
from pipelines.dataset.manifest import open_dataset, read_info
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.paper.arms import scaled_start
from pipelines.experiments.paper.numbers import N2S
from pipelines.flows import train_cascade
from pipelines.recipes.overrides import load
from pipelines.recipes.recipe import Recipe, StageConfig

TINY_PX: Final = (32, 64, 128)
SMALL_PX: Final = 256
T_MARGIN: Final = 1.2
"""TEM is trained a little beyond the largest start that is sampled."""


@dataclass(frozen=True)
class Plan:
    """What is trained: a recipe with its faces, the budget, the seeds, and the numbers' format.

    `samples` is that of IRM-1, IRM-2 and IRM-s each; TEM sees half as many.
    """

    recipe: Recipe
    root: str
    samples: int
    seeds: tuple[int, ...]
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UsageError(f"found {self.samples} training samples; expected at least 2; give more")


@dataclass(frozen=True)
class Trained:
    """The folders of one seed's weights: the cascade's three stages, and IRM-s as a stage named irm1."""

    seed: int
    cascade: Path
    one_stage: Path


@dataclass(frozen=True)
class RunIdentity:
    """All that the weights of IRM-s depend on."""

    stage: StageSpec
    training: TrainingConfig
    content_id: str


class FullSizeDataset(ShardedDataset):
    """The faces of a dataset, where x'_0 is the ground truth at full size: IRM-1's training makes IRM-s."""

    def __init__(self, dataset: ShardedDataset) -> None:
        info = replace(dataset.info, lq_px=dataset.info.hq_px)
        columns = {column.column: dataset.index(column.column) for column in dataset.columns}
        super().__init__(dataset.root, info, dataset.samples, columns, dataset.tars)

    def hq_low(self, key: str, variant: int, in_colour: bool = False) -> Pixels:
        """The ground truth at full size."""
        return self.hq(key, variant, in_colour)


def train_seed(plan: Plan, seed: int) -> Trained:
    """Train or find the weights of a seed; an interrupted training continues."""
    recipe = cascade_recipe(plan, seed)
    folders = _run(recipe, plan.root)
    one_stage = _train_one_stage(plan, recipe, folders["shard"], seed)
    return Trained(seed, Path(folders["cascade"]), one_stage)


def train_cascade_of_seed(plan: Plan, seed: int) -> Path:
    """Train or find the cascade of a seed without IRM-s; its folder."""
    return Path(_run(cascade_recipe(plan, seed), plan.root)["cascade"])


def _run(recipe: Recipe, root: str) -> dict[str, str]:
    """Run the product's pipeline up to the cascade; the folder of every step."""
    report = train_cascade.run(recipe, root, until="cascade")
    store = ArtifactStore(root)
    return {line.name: _folder(store, line.artifact) for line in report.steps}


def cascade_recipe(plan: Plan, seed: int) -> Recipe:
    """The recipe with the budget and the seed: IRM-2 over every t, TEM up to its largest start."""
    recipe = plan.recipe
    tem = recipe.tem.stage
    t_max = math.ceil(T_MARGIN * max(scaled_start(tem.schedule, start, tem.px) for start in N2S))
    return replace(
        recipe,
        irm1=_with_budget(recipe.irm1, plan, plan.samples, seed, None),
        irm2=_with_budget(recipe.irm2, plan, plan.samples, seed, None),
        tem=_with_budget(recipe.tem, plan, plan.samples // 2, seed, min(t_max, tem.schedule.num_steps)),
    )


def one_stage_spec(recipe: Recipe) -> StageSpec:
    """IRM-s: the network of IRM-2, sampled from pure noise like IRM-1, on the low-quality face."""
    spec = recipe.irm2.stage
    return replace(spec, name="irm1", start=spec.schedule.num_steps)


def recipe_of(px: int, faces: str) -> Recipe:
    """The small stages at 32, 64 or 128 px (recipe `tiny`) or at 256 px (`small`), for these faces."""
    recipe = load("small" if px == SMALL_PX else "tiny", None, (f"data.faces={faces}",))
    if px == recipe.data.hq_px:
        return _without_hold_out(recipe)
    if px not in TINY_PX:
        raise UsageError(f"found {px} px; expected one of {', '.join(map(str, (*TINY_PX, SMALL_PX)))}")
    low = px * recipe.data.lq_px // recipe.data.hq_px
    return _without_hold_out(
        replace(
            recipe,
            data=replace(recipe.data, hq_px=px, lq_px=low),
            irm1=_at(recipe.irm1, low),
            irm2=_at(recipe.irm2, px),
            tem=_at(recipe.tem, px),
        )
    )


def _at(config: StageConfig, px: int) -> StageConfig:
    return replace(config, stage=replace(config.stage, unet=replace(config.stage.unet, image_px=px)))


def _without_hold_out(recipe: Recipe) -> Recipe:
    """All faces train, once degraded: the hold-out is a set of its own."""
    return replace(recipe, data=replace(recipe.data, variants=1, val_fraction=0.0, test_fraction=0.0))


def _with_budget(config: StageConfig, plan: Plan, samples: int, seed: int, t_max: int | None) -> StageConfig:
    """The training at another number of samples, in the proportions of the small recipes."""
    training = replace(
        config.training,
        num_samples=samples,
        warmup_samples=min(2_000, samples // 8),
        decay_samples=samples // 2,
        ema_half_life=min(4_000.0, samples / 8),
        checkpoint_samples=min(4_000, max(1, samples // 2)),
        t_max=t_max,
        patch_px=None,
        precision=plan.precision,
        seed=seed,
    )
    return replace(config, training=training)


def _folder(store: ArtifactStore, artifact_id: str) -> str:
    record = store.by_id(artifact_id)
    if record is None:
        raise IncompleteError(f"{store.root} lacks artifact {artifact_id}; run the same command again")
    return store.artifact_dir(record.identity)


def _train_one_stage(plan: Plan, recipe: Recipe, dataset: str, seed: int) -> Path:
    """Train IRM-s below the root, unless its weights are there."""
    spec, training = one_stage_spec(recipe), recipe.irm2.training
    identity = digest(RunIdentity(spec.trained, training, read_info(dataset).content_id))[:20]
    folder = Path(plan.root, "irm-s", f"{seed}-{identity}")
    if not (folder / "irm1.safetensors").is_file():
        train(Run(spec.trained, training, FullSizeDataset(open_dataset(dataset)), folder))
    return folder
