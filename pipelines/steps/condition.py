"""Condition: run IRM-1 over every key and variant, and append what it makes as the column that IRM-2 trains on (Eq. 9).

One task is one shard of the column: the same keys in the same order as the dataset's own. The noise of a picture is keyed by its LQ
file, exactly as `restore` keys it, so the column holds what the cascade would make of that file. On a CPU every actor samples on one
thread: the bytes are the same for any number of actors, cores and kills.

A picture that is not finite, or one colour although its input is not, is quarantined: it keeps its place, and IRM-2 never sees it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from diffbfr.errors import QuarantineError
from diffbfr.images import encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.shards import ColumnInfo
from diffbfr.stages import StageSpec
from pipelines import columns, storage
from pipelines.commits import Quarantined

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
class ConditionReport:
    """What became of one task; `skipped` if its valid commit was there already."""

    index: int
    pictures: int
    quarantined: int
    skipped: bool
    seconds: float


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
        commit = columns.find_column_shard(task.dataset, task.column, task.index, task.digest)
        skipped = commit is not None
        if commit is None:
            with one_thread():
                made = list(self._pictures(task))
            bad = [row for _, _, _, row in made if row is not None]
            files = ((key, name, data) for key, name, data, _ in made)
            commit = columns.write_column_shard(task.dataset, task.column, task.index, task.digest, files, bad)
        return ConditionReport(task.index, task.num_pictures, len(commit.quarantined), skipped, time.monotonic() - started)

    def _pictures(self, task: ConditionTask) -> Iterator[tuple[str, str, bytes, Quarantined | None]]:
        """(key, name, PNG) in the dataset's order, and why it is quarantined if it is; batches run across keys and variants."""
        from diffbfr.cascade import sample

        stage, dataset = self._open()
        wanted = [(key, variant) for key in task.keys for variant in range(task.variants)]
        for start in range(0, len(wanted), task.batch):
            chunk = wanted[start : start + task.batch]
            files = [dataset.lq_bytes(key, variant) for key, variant in chunk]
            digests = [hashlib.sha256(data).hexdigest() for data in files]
            x_0 = to_tensor([lq_to_model(dataset.lq(key, variant), stage.spec.px) for key, variant in chunk])
            device = next(stage.parameters()).device
            made = sample(stage, list(map(noise_key, digests)), task.mode, start_image=None, condition=x_0.to(device))
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
                bad = Quarantined(f"{key}.{name}", len(files[row]), digests[row], "irm1", reason, "of its LQ file") if reason else None
                yield key, name, encode_png(pixels), bad

    def _open(self) -> "tuple[Denoiser, ShardedDataset]":
        if self._opened is None:
            import torch

            from diffbfr.checkpoint import load_stage
            from pipelines.manifest import open_dataset

            device = "cuda" if torch.cuda.is_available() else "cpu"
            folder = storage.fetch_tree(self._first.model, storage.cache_folder("artifacts"))
            stage = load_stage(folder, "irm1", self._first.stage).ready(device)
            self._opened = stage, open_dataset(self._first.dataset)
        return self._opened


def make_conditioner(first: ConditionTask) -> Callable[[ConditionTask], ConditionReport]:
    """Build the worker of an actor, which serves this task and all others of its column."""
    return Conditioner(first)


def finish_condition(tasks: list[ConditionTask], max_bad_share: float, table: str) -> ColumnInfo:
    """Check that every shard is committed and make the column visible to readers; what is quarantined is listed in `table`.

    QuarantineError if it is more than that share of all pictures: such an IRM-1 is not to be followed.
    """
    first = tasks[0]
    rows = columns.read_quarantined(first.dataset, first.column, len(tasks))
    if rows:
        storage.write_json(table, [asdict(row) for row in rows])
    total = sum(task.num_pictures for task in tasks)
    if len(rows) > max_bad_share * total:
        raise QuarantineError(
            f"{len(rows)} of {total} pictures by irm1 are degenerate (first: {rows[0].source}, {rows[0].reason}); expected at most "
            f"column.max_bad_share={max_bad_share:g} of them; see {table}, and train irm1 longer or with a lower learning rate"
        )
    info = ColumnInfo(first.column, tuple(f"{variant}.png" for variant in range(first.variants)), first.model_digest)
    return columns.finish_column(first.dataset, info, [task.digest for task in tasks])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on this thread alone: how many share a sum decides its last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
