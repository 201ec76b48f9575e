"""Condition: run IRM-1 over every key and variant; its outputs are the column that IRM-2 trains on (Eq. 9).

One task makes one shard of the column, with the keys of the dataset's shard in the same order. The noise of
an image is keyed by its LQ file, as in `restore`, so the column holds what the cascade makes of that file. On
a CPU every actor samples on one thread, so that the bytes do not depend on the number of actors and cores,
nor on killed workers.

An image that is not finite, or has one colour although its input has several, is quarantined: it keeps its
place in the shard, and IRM-2 is not trained on it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
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
    """One shard of a column: the `keys` of `dataset`, run through the stage with the weights in `model`.

    `model_digest` identifies the weights and the specification `stage`.
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
        """Digest of everything that the shard's bytes depend on."""
        parts = [self.column, list(self.keys), self.variants, self.model_digest, self.mode]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def num_images(self) -> int:
        """Number of images in the shard."""
        return len(self.keys) * self.variants


@dataclass(frozen=True)
class ConditionReport:
    """The result of one task; `skipped` if a valid commit existed."""

    index: int
    images: int
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
    """Make one shard of the column; equal tasks write equal bytes."""
    return Conditioner(task)(task)


class Conditioner:
    """Runs the tasks of one column; network and manifest are loaded for the first uncommitted task."""

    def __init__(self, first: ConditionTask) -> None:
        self._first = first
        self._opened: tuple[Denoiser, ShardedDataset] | None = None

    def __call__(self, task: ConditionTask) -> ConditionReport:
        """Make one shard unless it is committed."""
        started = time.monotonic()
        commit = columns.find_column_shard(task.dataset, task.column, task.index, task.digest)
        skipped = commit is not None
        if commit is None:
            with single_thread():
                made = list(self._images(task))
            bad = [row for _, _, _, row in made if row is not None]
            files = ((key, name, data) for key, name, data, _ in made)
            commit = columns.write_column_shard(
                task.dataset, task.column, task.index, task.digest, files, bad
            )
        return ConditionReport(
            task.index, task.num_images, len(commit.quarantined), skipped, time.monotonic() - started
        )

    def _images(self, task: ConditionTask) -> Iterator[tuple[str, str, bytes, Quarantined | None]]:
        """Yield (key, name, PNG, quarantine row or None) in the dataset's order; batches mix keys."""
        from diffbfr.cascade import sample

        stage, dataset = self._open()
        wanted = list(product(task.keys, range(task.variants)))
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
            images = to_pixels(made.where(finite[:, None, None, None], 0.0))
            # a face of one colour may be restored to one colour; any other constant output is degenerate
            constant_inputs = (x_0 == x_0[:, :, :1, :1]).flatten(1).all(1)
            for row, ((key, variant), pixels) in enumerate(zip(chunk, images, strict=True)):
                reason = ""
                if not finite[row]:
                    reason = "not_finite"
                elif not constant_inputs[row] and bool((pixels == pixels[:1, :1]).all()):
                    reason = "constant"
                name = f"{variant}.png"
                bad = None
                if reason:
                    bad = Quarantined(
                        f"{key}.{name}", len(files[row]), digests[row], "irm1", reason, "of its LQ file"
                    )
                yield key, name, encode_png(pixels), bad

    def _open(self) -> "tuple[Denoiser, ShardedDataset]":
        if self._opened is None:
            import torch

            from diffbfr.checkpoint import load_stage
            from diffbfr.digests import is_model_file
            from pipelines.dataset.manifest import open_dataset

            device = "cuda" if torch.cuda.is_available() else "cpu"
            folder = storage.fetch_tree(self._first.model, storage.cache_folder("artifacts"), is_model_file)
            stage = load_stage(folder, "irm1", self._first.stage).ready(device)
            self._opened = stage, open_dataset(self._first.dataset)
        return self._opened


def make_conditioner(first: ConditionTask) -> Callable[[ConditionTask], ConditionReport]:
    """Build the worker of an actor; it runs this task and all others of the same column."""
    return Conditioner(first)


def finish_condition(tasks: list[ConditionTask], max_bad_share: float, table: str) -> ColumnInfo:
    """Check that every shard is committed, list the quarantined images in `table`, make the column visible.

    QuarantineError if they are more than `max_bad_share` of all images, because IRM-2 should not be trained
    on such a column.
    """
    first = tasks[0]
    rows = columns.read_quarantined(first.dataset, first.column, len(tasks))
    if rows:
        storage.write_json(table, [asdict(row) for row in rows])
    total = sum(task.num_images for task in tasks)
    if len(rows) > max_bad_share * total:
        raise QuarantineError(
            f"{len(rows)} of {total} images by irm1 are degenerate (first: {rows[0].source}, "
            f"{rows[0].reason}); expected at most column.max_bad_share={max_bad_share:g} of them; see "
            f"{table}, and train irm1 longer or with a lower learning rate"
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
    """Append IRM-1's column to the dataset; each version of IRM-1 has a column of its own."""
    from pipelines.dataset import manifest
    from pipelines.execution.artifact_store import OutputRef
    from pipelines.execution.dag import StepOutput
    from pipelines.steps.assemble import stage_digest
    from pipelines.steps.context import committed_outputs

    recipe, dataset, digest = ctx.recipe, ctx.steps["shard"], stage_digest(ctx, "irm1")
    # the name changes with the step and with the weights, since a column is never overwritten
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
        weight=lambda task: task.num_images,
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
        "images": sum(task.num_images for task in tasks),
        "quarantined": len(info.quarantined),
    }
    content = hashlib.sha256(json.dumps([asdict(info), digests]).encode()).hexdigest()
    return StepOutput({"record": "column.json", **files}, metadata, content)


@driver_only
def _estimate(recipe: "Recipe") -> str:
    return f"{recipe.data.variants} images a face"


CONDITION = StepDef("condition-irm1", (__name__,), _config, _build, _estimate)
