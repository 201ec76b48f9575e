"""Train one stage: every rank opens the dataset, takes the newest sealed checkpoint and runs the one loop of `diffbfr.training`.

Rank 0 puts every sealed checkpoint and, last, the weights where they belong (`pipelines.steps.workspace`). What S3 refuses ends the
attempt.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.stages import StageSpec
from diffbfr.training.config import TrainingConfig
from pipelines import storage
from pipelines.progress import Link, Metrics
from pipelines.steps.workspace import workspace


@dataclass(frozen=True)
class TrainTask:
    """One training: a stage on a dataset, with its checkpoints and weights in `folder`.

    IRM-2 trains on `column`, which the model of digest `column_model` must have made; it has none where it sees the resized ground truth
    (`TrainingConfig.condition`). `initial` is the folder of a cascade whose weights are the start; empty starts from nothing. The last
    three save memory or time and change no result.
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
    """How a training ended; `restarts` and `goodput` are of this command (`History`), `resumed_from` and `seconds` of its last attempt."""

    steps: int
    samples: int
    loss: float
    resumed_from: int
    seconds: float
    restarts: int
    goodput: float


def train_stage(task: TrainTask, link: Link) -> TrainReport:
    """Train to the end, or go on from where an earlier attempt stopped; every rank of a group calls this.

    How the stage will be sampled is no part of its training, nor of its checkpoints.
    """
    import torch

    from diffbfr.checkpoint import load_stage
    from diffbfr.training.loop import Run, StepMetrics, train
    from pipelines.manifest import open_dataset

    task = replace(task, stage=task.stage.trained)
    dataset = open_dataset(task.dataset)
    _check_column(task, dataset)
    initial = load_stage(_local(task.initial), task.stage.name, expected=task.stage) if task.initial else None
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"

    def report(metrics: StepMetrics) -> None:
        values = {name: float(value) for name, value in asdict(metrics).items() if name not in ("step", "samples")}
        link.post(Metrics(metrics.step, metrics.samples, values))

    def alive(done: int) -> None:
        if done < task.config.num_steps:
            link.alive(done)
        else:
            link.rest()

    with workspace(task.folder) as (folder, publish):
        run = Run(
            task.stage,
            task.config,
            dataset,
            folder,
            place=task.folder,
            column=task.column or None,
            initial=initial,
            initial_digest=task.initial_digest,
            device=device,
            recompute_px=task.recompute_px,
            micro_batch=task.micro_batch,
            compiled=task.compiled,
        )
        result = train(run, report, sealed=publish, alive=alive)
        publish(folder / f"{task.stage.name}.json")
        publish(folder / f"{task.stage.name}.safetensors")
    history = link.history()
    return TrainReport(
        result.steps, result.samples, result.loss, result.resumed_from, result.seconds, history.restarts, round(history.goodput, 4)
    )


def _check_column(task: TrainTask, dataset: ShardedDataset) -> None:
    """IRM-2 learns to follow one IRM-1 (Eq. 9): a column that another one made is refused."""
    from diffbfr.training.batches import check_column

    check_column(task.stage, task.config, task.column)
    if not task.column or task.stage.name != "irm2":
        return
    maker = dataset.column(task.column).model_digest
    if maker != task.column_model:
        raise UsageError(
            f"column {task.column} was made by irm1 {maker[:12] or '(photos)'}, this run's irm1 is {task.column_model[:12]}; "
            "expected the same; run `diffbfr condition irm1` again"
        )


def _local(folder: str) -> Path:
    return storage.fetch_tree(folder, storage.cache_folder("cascades"))
