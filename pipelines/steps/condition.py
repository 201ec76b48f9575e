"""Condition: run IRM-1 over every key and variant, and append what it makes as the column that IRM-2 trains
on (Eq. 9).

One task is one shard of the column: the same keys in the same order as the dataset's own. The noise of a
picture is keyed by its LQ file, exactly as `restore` keys it, so the column holds what the cascade would make
of that file. On a CPU every actor samples on one thread: the bytes are the same for any number of actors,
cores and kills.

A picture that is not finite, or one colour although its input is not, is quarantined: it keeps its place, and
IRM-2 never sees it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from diffbfr.cost.threads import single_thread
from diffbfr.errors import QuarantineError
from diffbfr.images import encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.shards import ColumnInfo
from diffbfr.stages import Mode, StageSpec
from pipelines import storage
from pipelines.dataset import columns
from pipelines.dataset.commits import Quarantined
from pipelines.steps.definition import StepDef, driver_only

if TYPE_CHECKING:
    from diffbfr.models.denoiser import Denoiser
    from diffbfr.shards import ShardedDataset
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext


@dataclass(frozen=True)
class ConditionTask:
    """One shard of a column: `keys` of `dataset` through the weights in the folder `model`, sampled as
    `stage` says.

    `model_digest` is the identity of both.
    """

    index: int
    dataset: str
    column: str
    keys: tuple[str, ...]
    variants: int
    stage: StageSpec
    model: str
    model_digest: str
    mode: Mode = "fast"
    batch: int = 64

    @property
    def digest(self) -> str:
        """Digest of all that the shard's bytes depend on."""
        parts = [self.column, list(self.keys), self.variants, self.model_digest, self.mode]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def num_pictures(self) -> int:
        """How many pictures the shard holds."""
        return len(self.keys) * self.variants


@dataclass(frozen=True)
class ConditionReport:
    """What became of one task; `skipped` if its valid commit was there already."""

    index: int
    pictures: int
    quarantined: int
    skipped: bool
    seconds: float


def plan_condition(template: ConditionTask) -> list[ConditionTask]:
    """One task for each shard of the dataset."""
    from pipelines.dataset.manifest import read_shard_keys

    return [
        replace(template, index=index, keys=keys)
        for index, keys in enumerate(read_shard_keys(template.dataset))
    ]


def condition(task: ConditionTask) -> ConditionReport:
    """Make one shard of the column; the same task writes the same bytes."""
    return Conditioner(task)(task)


class Conditioner:
    """Serves the tasks of one column: networks and manifest are opened for the first one that has work."""

    def __init__(self, first: ConditionTask) -> None:
        self._first = first
        self._opened: tuple[Denoiser, ShardedDataset] | None = None

    def __call__(self, task: ConditionTask) -> ConditionReport:
        """Make one shard, unless its commit is there."""
        started = time.monotonic()
        commit = columns.find_column_shard(task.dataset, task.column, task.index, task.digest)
        skipped = commit is not None
        if commit is None:
            with single_thread():
                made = list(self._pictures(task))
            bad = [row for _, _, _, row in made if row is not None]
            files = ((key, name, data) for key, name, data, _ in made)
            commit = columns.write_column_shard(
                task.dataset, task.column, task.index, task.digest, files, bad
            )
        return ConditionReport(
            task.index, task.num_pictures, len(commit.quarantined), skipped, time.monotonic() - started
        )

    def _pictures(self, task: ConditionTask) -> Iterator[tuple[str, str, bytes, Quarantined | None]]:
        """(key, name, PNG) in the dataset's order, and why it is quarantined if it is; batches run across
        keys and variants.
        """
        from diffbfr.cascade import sample

        stage, dataset = self._open()
        wanted = [(key, variant) for key in task.keys for variant in range(task.variants)]
        for start in range(0, len(wanted), task.batch):
            chunk = wanted[start : start + task.batch]
            files = [dataset.lq_bytes(key, variant) for key, variant in chunk]
            digests = [hashlib.sha256(data).hexdigest() for data in files]
            x_0 = to_tensor([lq_to_model(dataset.lq(key, variant), stage.spec.px) for key, variant in chunk])
            device = next(stage.parameters()).device
            made = sample(
                stage, list(map(noise_key, digests)), task.mode, start_image=None, condition=x_0.to(device)
            )
            finite = made.isfinite().flatten(1).all(1)
            pictures = to_pixels(made.where(finite[:, None, None, None], 0.0))
            flat_inputs = (x_0 == x_0[:, :, :1, :1]).flatten(1).all(1)
            for row, ((key, variant), pixels) in enumerate(zip(chunk, pictures, strict=True)):
                reason = ""
                if not finite[row]:
                    reason = "not_finite"
                elif not flat_inputs[row] and bool((pixels == pixels[:1, :1]).all()):
                    reason = "constant"
                name = f"{variant}.png"
                bad = (
                    Quarantined(
                        f"{key}.{name}", len(files[row]), digests[row], "irm1", reason, "of its LQ file"
                    )
                    if reason
                    else None
                )
                yield key, name, encode_png(pixels), bad

    def _open(self) -> "tuple[Denoiser, ShardedDataset]":
        if self._opened is None:
            import torch

            from diffbfr.checkpoint import load_stage
            from pipelines.dataset.manifest import open_dataset

            device = "cuda" if torch.cuda.is_available() else "cpu"
            folder = storage.fetch_tree(self._first.model, storage.cache_folder("artifacts"))
            stage = load_stage(folder, "irm1", self._first.stage).ready(device)
            self._opened = stage, open_dataset(self._first.dataset)
        return self._opened


def make_conditioner(first: ConditionTask) -> Callable[[ConditionTask], ConditionReport]:
    """Build the worker of an actor, which serves this task and all others of its column."""
    return Conditioner(first)


def finish_condition(tasks: list[ConditionTask], max_bad_share: float, table: str) -> ColumnInfo:
    """Check that every shard is committed and make the column visible to readers; what is quarantined is
    listed in `table`.

    QuarantineError if it is more than that share of all pictures: such an IRM-1 is not to be followed.
    """
    first = tasks[0]
    rows = columns.read_quarantined(first.dataset, first.column, len(tasks))
    if rows:
        storage.write_json(table, [asdict(row) for row in rows])
    total = sum(task.num_pictures for task in tasks)
    if len(rows) > max_bad_share * total:
        raise QuarantineError(
            f"{len(rows)} of {total} pictures by irm1 are degenerate (first: {rows[0].source}, "
            f"{rows[0].reason}); expected at most "
            f"column.max_bad_share={max_bad_share:g} of them; see {table}, and train irm1 longer or with a "
            "lower learning rate"
        )
    info = ColumnInfo(
        first.column, tuple(f"{variant}.png" for variant in range(first.variants)), first.model_digest
    )
    return columns.finish_column(first.dataset, info, [task.digest for task in tasks])


@driver_only
def _config(recipe: "Recipe") -> dict[str, Any]:
    from pipelines.recipes.recipe import sampling_settings

    return sampling_settings(recipe, "irm1") | {"mode": recipe.sampling.mode}


@driver_only
def _build(ctx: "RunContext", folder: str) -> "StepOutput":
    """Append IRM-1's column to the dataset; an IRM-1 that came out otherwise gets a column of its own."""
    from pipelines.dataset import manifest
    from pipelines.execution.artifact_store import OutputRef
    from pipelines.execution.dag import StepOutput
    from pipelines.steps.assemble import stage_digest
    from pipelines.steps.context import committed_outputs

    recipe, dataset, digest = ctx.recipe, ctx.steps["shard"], stage_digest(ctx, "irm1")
    made_by = hashlib.sha256(f"{ctx.steps[CONDITION.name].id}\0{digest}".encode()).hexdigest()
    template = ConditionTask(
        index=0,
        dataset=ctx.artifact_dir(dataset.name),
        column=f"irm1-{made_by[:12]}",
        keys=(),
        variants=recipe.data.variants,
        stage=recipe.irm1.stage,
        model=ctx.artifact_dir("train-irm1"),
        model_digest=digest,
        mode=recipe.sampling.mode,
    )
    tasks = plan_condition(template)
    ctx.cluster.map_actors(
        partial(make_conditioner, tasks[0]),
        tasks,
        label="condition",
        unit="img",
        weight=lambda task: task.num_pictures,
        one_core=True,
    )
    info = finish_condition(tasks, recipe.column.max_bad_share, storage.join(folder, "quarantine.json"))
    storage.write_json(storage.join(folder, "column.json"), asdict(info) | {"dataset": dataset.id})
    index = (storage.join(info.column, manifest.COLUMN_RECORD), manifest.members_path(info.column))
    files = committed_outputs(
        template.dataset, f"{info.column}/commits", len(tasks), index, f"../../{dataset.name}/{dataset.id}/"
    )
    digests = [file.sha256 for file in files.values() if isinstance(file, OutputRef)]
    metadata = {
        "column": info.column,
        "irm1": digest,
        "pictures": sum(task.num_pictures for task in tasks),
        "quarantined": len(info.quarantined),
    }
    content = hashlib.sha256(json.dumps([asdict(info), digests]).encode()).hexdigest()
    return StepOutput({"record": "column.json", **files}, metadata, content)


@driver_only
def _estimate(recipe: "Recipe") -> str:
    return f"{recipe.data.variants} pictures a face"


CONDITION = StepDef("condition-irm1", (__name__,), _config, _build, _estimate)
