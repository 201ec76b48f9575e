"""Train one stage: every rank opens the dataset, reads the newest checkpoint and runs `training.loop`.

Rank 0 publishes every checkpoint and, last, the weights in the folder of the training
(`pipelines.steps.workspace`). An upload that fails ends the attempt.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.stages import SAMPLING, StageName, StageSpec
from diffbfr.training.config import NON_IDENTITY_FIELDS, TrainingConfig
from pipelines import storage
from pipelines.cluster.protocol import Metrics, TrainingReporter
from pipelines.steps.definition import StepDef, driver_only, without
from pipelines.steps.workspace import workspace

if TYPE_CHECKING:
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext

METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainTask:
    """One training: a stage on a dataset, with its checkpoints and weights in `folder`.

    IRM-2 trains on `column`, which must come from the model of digest `column_model`; without a column it is
    conditioned on the resized ground truth (`TrainingConfig.condition`). `initial` is the folder of a cascade
    or of the stage alone, whose weights initialise the stage; empty: random weights. `recompute_px`,
    `micro_batch` and `compiled` save memory or time and do not change the result.
    """

    stage: StageSpec
    config: TrainingConfig
    dataset: str
    folder: str
    column: str = ""
    column_model: str = ""
    initial: str = ""
    initial_digest: str = ""
    recompute_px: int | None = None
    micro_batch: int | None = None
    compiled: bool = False


@dataclass(frozen=True)
class TrainReport:
    """The end of a training.

    `restarts` and `goodput` cover this command (`RestartStats`), `resumed_from` (a step) and `seconds` its
    last attempt.
    """

    steps: int
    samples: int
    loss: float
    resumed_from: int
    seconds: float
    restarts: int
    goodput: float


def train_stage(task: TrainTask, reporter: TrainingReporter) -> TrainReport:
    """Train to the end, from the newest checkpoint if there is one; every rank of a group calls this.

    The sampling settings of the stage are dropped first, but for a distilled one: they enter neither training
    nor checkpoints.
    """
    import torch

    from diffbfr.checkpoint import load_stage
    from diffbfr.origin import read_origins
    from diffbfr.training.loop import Run, StepMetrics, train
    from pipelines.dataset.manifest import open_dataset

    task = replace(task, stage=task.stage.trained)
    dataset = open_dataset(task.dataset)
    _check_column(task, dataset)
    name = task.stage.name
    start = _local(task.initial) if task.initial else None
    # a student starts from its teacher, which is the same stage before
    initial = load_stage(start, name, expected=replace(task.stage, distilled=False)) if start else None
    origin = read_origins(start, (name,)).get(name) if start else None
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"

    def report(metrics: StepMetrics) -> None:
        values = {
            name: float(value) for name, value in asdict(metrics).items() if name not in ("step", "samples")
        }
        reporter.report(Metrics(metrics.step, metrics.samples, values))

    def heartbeat(done: int) -> None:
        if done < task.config.num_steps:
            reporter.heartbeat(done)
        else:
            reporter.finishing()

    with workspace(task.folder) as (folder, publish):
        run = Run(
            task.stage,
            task.config,
            dataset,
            folder,
            uri=task.folder,
            column=task.column or None,
            initial=initial,
            initial_digest=task.initial_digest,
            origin=origin,
            device=device,
            recompute_px=task.recompute_px,
            micro_batch=task.micro_batch,
            compiled=task.compiled,
        )
        result = train(run, report, on_checkpoint=publish, heartbeat=heartbeat)
        publish(folder / f"{task.stage.name}.json")
        publish(folder / f"{task.stage.name}.safetensors")
    stats = reporter.restart_stats()
    return TrainReport(
        result.steps,
        result.samples,
        result.loss,
        result.resumed_from,
        result.seconds,
        stats.restarts,
        round(stats.goodput, 4),
    )


def _check_column(task: TrainTask, dataset: ShardedDataset) -> None:
    """Raise UsageError unless the column of IRM-2 comes from the IRM-1 of this run (Eq. 9)."""
    from diffbfr.training.batches import check_column

    check_column(task.stage, task.config, task.column)
    if not task.column or task.stage.name != "irm2":
        return
    maker = dataset.column(task.column).model_digest
    if maker != task.column_model:
        raise UsageError(
            f"column {task.column} was made by irm1 {maker[:12] or '(photos)'}, this run's irm1 is "
            f"{task.column_model[:12]}; "
            "expected the same; run `diffbfr condition irm1` again"
        )


def _local(folder: str) -> Path:
    from diffbfr.digests import is_model_file

    return storage.fetch_tree(folder, storage.cache_folder("cascades"), is_model_file)


@driver_only
def _config(name: StageName, recipe: "Recipe") -> dict[str, Any]:
    """The settings that decide the weights, not where they are trained, nor how the stage is sampled.

    A distilled stage is trained for the evaluations of its sampler.
    """
    from pipelines.execution.artifact_store import flatten

    config = recipe.stage(name)
    settings = flatten(config.stage, "stage") | flatten(config.training, "training")
    sampling = () if config.stage.distilled else tuple(f"stage.{field}" for field in SAMPLING)
    return without(settings, *sampling, *(f"training.{field}" for field in NON_IDENTITY_FIELDS))


@driver_only
def _task(ctx: "RunContext", name: StageName, folder: str) -> TrainTask:
    config, cluster = ctx.recipe.stage(name), ctx.recipe.cluster
    column = ctx.metadata("condition-irm1") if name == "irm2" and "condition-irm1" in ctx.steps else {}
    return TrainTask(
        stage=config.stage,
        config=config.training,
        dataset=ctx.artifact_dir("shard"),
        folder=folder,
        column=column.get("column", ""),
        column_model=column.get("irm1", ""),
        initial=ctx.initial_for_workers(name),
        initial_digest=ctx.initial_digest(name),
        recompute_px=cluster.recompute_px,
        micro_batch=cluster.micro_batch,
        compiled=cluster.compile,
    )


@driver_only
def _build(name: StageName, ctx: "RunContext", folder: str) -> "StepOutput":
    """Train from the newest checkpoint with Ray Train and DDP, and render panels meanwhile."""
    from diffbfr.digests import model_digest
    from pipelines.evaluation.training_panels import TrainingPanels
    from pipelines.execution.dag import StepOutput
    from pipelines.steps.context import fetch_artifact
    from pipelines.tracking.metrics_log import MetricsLog

    step, task, training = TRAIN[name], _task(ctx, name, folder), ctx.recipe.stage(name).training
    log = MetricsLog(storage.join(folder, METRICS), partial(ctx.on_metrics, step.name))
    panels = TrainingPanels(
        folder,
        task.dataset,
        task.stage,
        task.column,
        in_background=ctx.recipe.cluster.num_workers > 0 and training.average_samples is not None,
        on_panel=partial(ctx.on_panel, step.name),
    )
    with log, panels:
        report = ctx.cluster.train(
            train_stage,
            task,
            label=name,
            total=training.num_steps * training.global_batch,
            root=ctx.store.root,
            on_metrics=log.add,
            num_parallel=step.num_parallel,
        )
    outputs = {"weights": f"{name}.safetensors", "spec": f"{name}.json"}
    if storage.exists(storage.join(folder, METRICS)):  # the metrics alone may have failed to be written
        outputs["metrics"] = METRICS
    digest = model_digest(fetch_artifact(folder), (name,))
    metadata = asdict(report) | {"digest": digest, "content_id": ctx.metadata("shard")["content_id"]}
    if panels.seconds:
        metadata["panel_seconds"] = panels.seconds
    if task.column:
        metadata |= {"column": task.column, "irm1": task.column_model}
    return StepOutput(outputs, metadata, digest)


@driver_only
def _estimate(name: StageName, recipe: "Recipe") -> str:
    """Number of samples and parameters, FLOPs of the training, and memory of each worker."""
    from diffbfr.cost.flops import num_parameters, training_flops
    from diffbfr.cost.memory import training_memory
    from diffbfr.training.active_ranks import num_active

    config = recipe.stage(name)
    unet, training = config.stage.unet, config.training
    parameters = num_parameters(unet)
    flops = training_flops(unet, training.num_samples) * training.area_share(config.stage.px)
    # a training step costs three evaluations (`training_flops`)
    flops *= 1 + (training.teacher_steps or 0) / 3
    workers = max(1, recipe.cluster.min_workers or recipe.cluster.num_workers)
    share = training.global_batch // num_active(workers, training.global_batch, training.reduce_leaves)
    memory = training_memory(
        unet,
        parameters,
        min(recipe.cluster.micro_batch or share, share),
        averages=training.num_averages,
        recompute_px=recipe.cluster.recompute_px,
        image_px=training.largest_px(config.stage.px),
    )
    return (
        f"{training.num_samples:,} samples, {parameters / 1e6:.1f} M parameters, "
        f"{_with_unit(flops)}FLOP, {_with_unit(memory.total)}B a worker"
    )


@driver_only
def _with_unit(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} E"


@driver_only
def _define(name: StageName, *parallel_with: str) -> StepDef:
    return StepDef(
        f"train-{name}",
        (__name__,),
        partial(_config, name),
        partial(_build, name),
        partial(_estimate, name),
        frozenset(parallel_with),
    )


TRAIN: Mapping[StageName, StepDef] = {
    "irm1": _define("irm1", "train-tem"),
    "irm2": _define("irm2"),
    "tem": _define("tem", "train-irm1"),
}
