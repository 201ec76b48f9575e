"""Condition: run IRM-1 over every key and variant, and append what it makes as the column that IRM-2 trains on (Eq. 9).

One task is one shard of the column: the same keys in the same order as the dataset's own. The noise of a picture is keyed by its LQ
file, exactly as `restore` keys it, so the column holds what the cascade would make of that file, for any number of actors.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from diffbfr.errors import QuarantineError
from diffbfr.images import encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.shards import ColumnInfo
from diffbfr.stages import StageSpec
from pipelines import columns, storage

if TYPE_CHECKING:
    from diffbfr.denoiser import Denoiser
    from diffbfr.shards import ShardedDataset

Mode = Literal["fast", "faithful"]


@dataclass(frozen=True)
class ConditionTask:
    """One shard of a column: `keys` of `dataset` through the weights in the folder `model`, sampled as `stage` says.

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
class Degenerate:
    """A picture that IRM-2 must not learn from: not finite, or one colour although its input is not."""

    key: str
    variant: int
    reason: Literal["not_finite", "constant"]


@dataclass(frozen=True)
class ConditionReport:
    """What became of one task; `skipped` if its valid commit was there already. A shard with degenerate pictures is not committed."""

    index: int
    pictures: int
    skipped: bool
    seconds: float
    degenerate: tuple[Degenerate, ...] = ()


def plan_condition(template: ConditionTask) -> list[ConditionTask]:
    """One task for each shard of the dataset."""
    from dataclasses import replace

    from pipelines.manifest import read_shard_keys

    return [replace(template, index=index, keys=keys) for index, keys in enumerate(read_shard_keys(template.dataset))]


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
        done = columns.find_column_shard(task.dataset, task.column, task.index, task.digest)
        degenerate: tuple[Degenerate, ...] = ()
        if done is None:
            made = list(self._pictures(task))
            degenerate = tuple(it for it in made if isinstance(it, Degenerate))
            if not degenerate:
                pictures = (it for it in made if not isinstance(it, Degenerate))
                columns.write_column_shard(task.dataset, task.column, task.index, task.digest, pictures)
        return ConditionReport(task.index, task.num_pictures, done is not None, time.monotonic() - started, degenerate)

    def _pictures(self, task: ConditionTask) -> Iterator[tuple[str, str, bytes] | Degenerate]:
        """(key, name, PNG) in the dataset's order; batches run across keys and variants."""
        from diffbfr.cascade import sample

        stage, dataset = self._open()
        wanted = [(key, variant) for key in task.keys for variant in range(task.variants)]
        for start in range(0, len(wanted), task.batch):
            chunk = wanted[start : start + task.batch]
            x_0 = to_tensor([lq_to_model(dataset.lq(key, variant), stage.spec.px) for key, variant in chunk])
            noise_keys = [noise_key(hashlib.sha256(dataset.lq_bytes(key, variant)).hexdigest()) for key, variant in chunk]
            device = next(stage.parameters()).device
            made = sample(stage, noise_keys, task.mode, start_image=None, condition=x_0.to(device))
            finite = made.isfinite().flatten(1).all(1)
            pictures = to_pixels(made.where(finite[:, None, None, None], 0.0))
            flat_inputs = (x_0 == x_0[:, :, :1, :1]).flatten(1).all(1)
            for (key, variant), pixels, is_finite, flat in zip(chunk, pictures, finite.tolist(), flat_inputs.tolist(), strict=True):
                if not is_finite or (not flat and bool((pixels == pixels[:1, :1]).all())):
                    yield Degenerate(key, variant, "constant" if is_finite else "not_finite")
                else:
                    yield key, f"{variant}.png", encode_png(pixels)

    def _open(self) -> "tuple[Denoiser, ShardedDataset]":
        if self._opened is None:
            import torch

            from diffbfr.checkpoint import load_stage
            from pipelines.manifest import open_dataset

            device = "cuda" if torch.cuda.is_available() else "cpu"
            folder = storage.fetch_tree(self._first.model, storage.cache_folder("artifacts"))
            stage = load_stage(folder, "irm1", self._first.stage).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._opened = stage, open_dataset(self._first.dataset)
        return self._opened


def make_conditioner(first: ConditionTask) -> Callable[[ConditionTask], ConditionReport]:
    """Build the worker of an actor, which serves this task and all others of its column."""
    return Conditioner(first)


def refuse_degenerate(reports: Sequence[ConditionReport], table: str) -> None:
    """Write the degenerate pictures of all shards into `table`; QuarantineError if there are any.

    IRM-2 learns from a whole column or from none.
    """
    found = [asdict(picture) for report in reports for picture in report.degenerate]
    if not found:
        return
    storage.write_json(table, found)
    total, first = sum(report.pictures for report in reports), found[0]
    raise QuarantineError(
        f"{len(found)} of {total} pictures by irm1 are degenerate (first: {first['key']}, variant {first['variant']}: {first['reason']}); "
        f"expected none, for irm2 learns from them; see {table}, and train irm1 longer or with a lower learning rate"
    )


def finish_condition(tasks: list[ConditionTask]) -> ColumnInfo:
    """Check that every shard is committed and make the column visible to readers."""
    first = tasks[0]
    info = ColumnInfo(first.column, tuple(f"{variant}.png" for variant in range(first.variants)), first.model_digest)
    return columns.finish_column(first.dataset, info, [task.digest for task in tasks])
