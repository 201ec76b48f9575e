"""One training loop for the three stages (Eq. 8, 9, 11): the same code in one process, under torchrun and
under Ray.

A run is a row of global positions 0, 1, 2, ...; step s consumes positions [s B, (s + 1) B) of the global
batch B, of which each rank takes a contiguous slice. Sample, variant, t and noise of a position are keyed by
(seed, position), never by rank or time: any number of ranks sees the same numbers, and a resumed run
continues as if nothing had happened. The process group, if there is one, is the caller's; here only
`torch.distributed` is asked who we are.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from diffbfr.checkpoint import load_checkpoint, save_checkpoint, save_stage
from diffbfr.errors import DivergedError, UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.shards import ShardedDataset
from diffbfr.spec import from_dict, to_dict
from diffbfr.stages import StageSpec
from diffbfr.training.batches import PositionLoader
from diffbfr.training.checkpoint_writer import AsyncCheckpointWriter
from diffbfr.training.config import NON_IDENTITY_FIELDS, TrainingConfig
from diffbfr.training.engine import TrainStep, copied

AVERAGES = "averages"
"""Folder of the averaged weights that `TrainingConfig.average_samples` keeps, each named by its number of
samples.
"""
SKIPPED = "skipped.json"
"""The steps whose loss was not finite, with the keys of their faces; absent if there was none."""


@dataclass(frozen=True)
class StepMetrics:
    """What rank 0 tells about a stretch of steps: mean loss, speed, and the shares of time spent waiting
    for data and for the writer.
    """

    step: int
    samples: int
    loss: float
    """A mean over the stretch and over all ranks; steps that were skipped do not count."""
    images_per_s: float
    data_share: float
    write_share: float
    learning_rate: float
    skipped: int
    """Steps since the run began whose loss or gradient was not finite."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves: the weights in `folder`, averaged or not
    (`TrainingConfig.ema_half_life`), and how it ended.
    """

    folder: Path
    steps: int
    samples: int
    loss: float
    """Of the last stretch; of the last checkpoint if there was nothing left to train."""
    resumed_from: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One training: what, on which data, and where its checkpoints (`folder/checkpoints`) and weights
    (`folder`) go.
    """

    stage: StageSpec
    config: TrainingConfig
    dataset: ShardedDataset
    folder: Path
    column: str | None = None
    """The appended column that conditions IRM-2."""
    initial: Denoiser | None = None
    """Weights to start from; None starts from nothing."""
    initial_digest: str = ""
    device: str = "cpu"
    readers: int = 2
    """Threads of each rank that read ahead; with any number the result is the same."""
    micro_batch: int | None = None
    """Images of a rank that are on the device at once; None is its whole share."""
    compiled: bool = False
    """Whether torch.compile makes the network's code."""
    recompute_px: int | None = None
    """Blocks at least this wide are run again in the backward pass (`UNet.recompute_px`): less memory, the
    same result.
    """
    place: str = ""
    """What messages call the folder, where it is only this machine's copy of another."""


def train(
    run: Run,
    report: Callable[[StepMetrics], None] = lambda metrics: None,
    on_checkpoint: Callable[[Path], None] = lambda path: None,
    alive: Callable[[int], None] = lambda step: None,
    report_every_s: float = 2.0,
) -> TrainResult:
    """Train a stage to `num_samples`, going on from the newest sealed checkpoint in the run's folder; every
    rank calls this.

    `report` hears from rank 0 every few seconds and at the end, `alive` on every rank the number of steps
    done, after each. `on_checkpoint` is told the path of each checkpoint and of each average that is kept, on
    a thread that writes them while the training goes on. The last checkpoint is that of the end, and
    `TrainStep.weights` are then written to `folder/STAGE.safetensors`. DivergedError if more than
    `max_skipped` steps had a loss that is not finite.
    """
    config = run.config
    started = time.monotonic()
    engine = TrainStep(
        run.stage,
        config,
        initial=run.initial,
        device=run.device,
        micro_batch=run.micro_batch,
        recompute_px=run.recompute_px,
        compiled=run.compiled,
    )
    active_ranks = engine.active_ranks
    contract = _resume_contract(run)
    state = load_checkpoint(run.folder / "checkpoints", contract, _with_defaults)
    first = 0 if state is None else state.step
    skipped = [] if state is None else list(state.skipped)
    losses: list[Tensor] = []  # since the checkpoint before
    _check_same_step(first, run.place or str(run.folder), engine.device, active_ranks.world)
    if state is not None:
        engine.restore(state)
    loader = PositionLoader(run.dataset, run.stage, config, run.column)
    stretch = _MetricsWindow(
        config,
        report,
        report_every_s,
        active_ranks.rank,
        math.nan if state is None or state.loss is None else state.loss,
    )

    batches = loader.batches(
        first * config.global_batch, active_ranks.shard_index, active_ranks.num_active, run.readers
    )
    done = first
    with closing(batches), AsyncCheckpointWriter(on_checkpoint, while_waiting=lambda: alive(done)) as writer:
        for step in range(first, config.num_steps):
            with stretch.waiting("data"):
                share = next(batches)
            stepped = engine.step(share, step)
            if not stepped.applied:
                skipped.append(step)
                _tell_skipped(
                    run,
                    loader,
                    skipped,
                    float(stepped.loss),
                    on_checkpoint if active_ranks.rank == 0 else None,
                )
            elif active_ranks.rank == 0:
                losses.append(stepped.loss)
            stretch.add(
                step, stepped.loss if stepped.applied else None, engine.learning_rate(step), len(skipped)
            )
            if active_ranks.rank == 0:
                with stretch.waiting("writer"):
                    _keep(run, engine, writer, step + 1, contract, skipped, losses)
            done = step + 1
            alive(done)

    if active_ranks.rank == 0:
        save_stage(run.folder, run.stage, engine.weights)
    if active_ranks.world > 1:
        dist.barrier()
    stretch.close()
    steps = config.num_steps
    return TrainResult(
        run.folder, steps, steps * config.global_batch, stretch.loss, first, time.monotonic() - started
    )


def _keep(
    run: Run,
    engine: TrainStep,
    writer: AsyncCheckpointWriter,
    done: int,
    contract: dict[str, Any],
    skipped: Sequence[int],
    losses: list[Tensor],
) -> None:
    """After `done` steps, on rank 0: hand the writer the average and the checkpoint that are due; the
    latter takes the losses.
    """
    config = run.config
    writer.check()
    samples = done * config.global_batch
    if _crosses(config.average_samples, samples, config.global_batch):
        folder = run.folder / AVERAGES / f"{samples:09d}"
        kept = {folder / power.name: copied(power.weights) for power in engine.powers} | {
            folder: copied(engine.weights)
        }
        writer.write(
            lambda: [save_stage(place, run.stage, weights).parent for place, weights in kept.items()][-1]
        )
    if done % max(1, config.checkpoint_samples // config.global_batch) == 0 or done == config.num_steps:
        loss = float(torch.stack(losses).mean()) if losses else None
        losses.clear()
        state = engine.snapshot(done, contract, skipped, loss)
        writer.write(
            lambda: save_checkpoint(
                run.folder / "checkpoints", state, config.keep_checkpoints, config.keep_best
            )
        )


def _crosses(every: int | None, samples: int, batch: int) -> bool:
    """Whether a multiple of `every` lies in the batch that ends at `samples`."""
    return every is not None and samples // every > (samples - batch) // every


def _tell_skipped(
    run: Run,
    loader: PositionLoader,
    skipped: Sequence[int],
    loss: float,
    on_checkpoint: Callable[[Path], None] | None,
) -> None:
    """Log a step that was skipped with the keys of its faces, on the rank that has `on_checkpoint`; end a
    run that has had too many.
    """
    config = run.config
    if on_checkpoint is not None:
        keys = [loader.keys_at(step * config.global_batch, config.global_batch) for step in skipped]
        rows = [{"step": step, "keys": faces} for step, faces in zip(skipped, keys, strict=True)]
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / SKIPPED).write_text(json.dumps(rows, indent=1) + "\n")
        on_checkpoint(run.folder / SKIPPED)
        logging.getLogger(__name__).warning(
            "%s step %d: loss %s, skipped; its faces: %s",
            run.stage.name,
            skipped[-1],
            loss,
            " ".join(keys[-1]),
        )
    if len(skipped) > config.max_skipped:
        raise DivergedError(
            f"{run.stage.name}: the loss or gradient was NaN or infinity in steps "
            f"{', '.join(map(str, skipped))}; expected at most "
            f"training.max_skipped={config.max_skipped}; see {run.place or run.folder}/{SKIPPED} for the "
            "faces, or lower "
            "training.learning_rate"
        )


class _MetricsWindow:
    """Collects the steps between two reports; every rank knows its last loss, rank 0 tells it."""

    def __init__(
        self,
        config: TrainingConfig,
        report: Callable[[StepMetrics], None],
        every_s: float,
        rank: int,
        loss: float,
    ) -> None:
        self.config, self.report, self.every_s, self.rank, self.loss = config, report, every_s, rank, loss
        self._last: tuple[int, float, int] | None = None
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._steps = 0
        self._waited: dict[str, float] = {"data": 0.0, "writer": 0.0}
        self._since = time.monotonic()

    @contextmanager
    def waiting(self, account: Literal["data", "writer"]) -> Iterator[None]:
        """Whatever happens inside is time that the networks wait."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited[account] += time.monotonic() - started

    def add(self, step: int, loss: Tensor | None, rate: float, skipped: int) -> None:
        """Take a step; its loss is None if it was skipped."""
        if loss is not None:
            self._losses.append(loss)
        self._steps += 1
        self._last = (step, rate, skipped)
        if time.monotonic() - self._since >= self.every_s:
            self._report()

    def close(self) -> None:
        if self._steps:
            self._report()

    def _report(self) -> None:
        assert self._last is not None
        step, rate, skipped = self._last
        elapsed = max(time.monotonic() - self._since, 1e-9)
        self.loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        speed = self._steps * self.config.global_batch / elapsed
        data, writer = self._waited["data"] / elapsed, self._waited["writer"] / elapsed
        if self.rank == 0:
            samples = (step + 1) * self.config.global_batch
            self.report(StepMetrics(step + 1, samples, self.loss, speed, data, writer, rate, skipped))
        self._clear()


def _check_same_step(first: int, place: str, device: torch.device, world: int) -> None:
    """Refuse ranks that found different checkpoints: they would go on from different weights without a
    word.
    """
    if world == 1:
        return
    firsts = [torch.zeros((), dtype=torch.long, device=device) for _ in range(world)]
    dist.all_gather(firsts, torch.tensor(first, device=device))
    if any(int(other) != first for other in firsts):
        raise UsageError(
            f"ranks found checkpoints of steps {[int(other) for other in firsts]} in {place}; "
            "expected the same one; choose a --root on storage that every machine shares"
        )


def _resume_contract(run: Run) -> dict[str, Any]:
    """What a checkpoint must agree on before anyone reads its tensors: all that its weights depend on."""
    return {
        "stage": to_dict(run.stage),
        "training": _settings(run.config),
        "content_id": run.dataset.info.content_id,
        "column": run.column or "",
        "initial": run.initial_digest,
    }


def _with_defaults(contract: Mapping[str, Any]) -> dict[str, Any]:
    """A contract of any version: a setting that it does not know has its default, and
    `NON_IDENTITY_FIELDS` is no part of it.
    """
    training = dict(contract["training"])
    if training["optimizer"] == "adamw":
        training.setdefault("weight_decay", 0.01)  # torch's own, as long as nobody told it
    stage = from_dict(StageSpec, contract["stage"])
    return {**contract, "stage": to_dict(stage), "training": _settings(from_dict(TrainingConfig, training))}


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in NON_IDENTITY_FIELDS}
