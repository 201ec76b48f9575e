"""One training loop for the three stages (Eq. 8, 9, 11), in one process, under torchrun and under Ray.

A run is a sequence of global positions 0, 1, 2, ...; step s consumes positions [s B, (s + 1) B), where B is
the global batch, and each rank takes a contiguous slice of them. Sample, variant, t and noise of a position
are keyed by (seed, position), never by rank or time: any number of ranks computes the same numbers, and a
resumed run continues as if it had not been stopped. The process group, if there is one, belongs to the
caller; this module only asks `torch.distributed` for rank and size.
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
from diffbfr.origin import Origin
from diffbfr.shards import ShardedDataset
from diffbfr.spec import from_dict, to_dict
from diffbfr.stages import StageSpec
from diffbfr.training.batches import PositionLoader
from diffbfr.training.checkpoint_writer import AsyncCheckpointWriter
from diffbfr.training.config import NON_IDENTITY_FIELDS, TrainingConfig
from diffbfr.training.train_step import TrainStep, copied

AVERAGES = "averages"
"""Folder of the averages that `TrainingConfig.average_samples` keeps, each named by its number of samples."""
SKIPPED = "skipped.json"
"""File with the steps whose loss was not finite and the keys of their faces; absent if there was none."""


@dataclass(frozen=True)
class StepMetrics:
    """What rank 0 reports of a window of steps.

    `data_share` and `write_share` are the fractions of its time spent waiting for data and for the writer.
    """

    step: int
    samples: int
    loss: float
    """A mean over the window and over all ranks, without the steps that were skipped."""
    images_per_s: float
    data_share: float
    write_share: float
    learning_rate: float
    skipped: int
    """Steps since the start of the run whose loss or gradient was not finite."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training; its weights in `folder` are averaged if `TrainingConfig.ema_half_life` is set."""

    folder: Path
    steps: int
    samples: int
    loss: float
    """The loss of the last window, or of the last checkpoint if there was nothing left to train."""
    resumed_from: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One training of a stage; checkpoints go to `folder/checkpoints`, the weights to `folder`."""

    stage: StageSpec
    config: TrainingConfig
    dataset: ShardedDataset
    folder: Path
    column: str | None = None
    """The appended column that conditions IRM-2."""
    initial: Denoiser | None = None
    """Weights to start from; None initialises them from the seed."""
    initial_digest: str = ""
    origin: Origin | None = None
    """Where `initial` comes from, if others trained it: the weights of this training carry it too."""
    device: str = "cpu"
    readers: int = 2
    """Threads of each rank that prefetch samples; the result is the same with any number."""
    micro_batch: int | None = None
    """Images of a rank that are on the device at once; None holds its whole share."""
    compiled: bool = False
    """Whether the network is compiled with torch.compile."""
    recompute_px: int | None = None
    """Blocks at least this wide are run again in the backward pass to save memory (`UNet.recompute_px`)."""
    uri: str = ""
    """The name of the folder in messages, if `folder` is only this machine's copy of it."""


def train(
    run: Run,
    report: Callable[[StepMetrics], None] = lambda metrics: None,
    on_checkpoint: Callable[[Path], None] = lambda path: None,
    heartbeat: Callable[[int], None] = lambda step: None,
    report_every_s: float = 2.0,
) -> TrainResult:
    """Train a stage to `num_samples`, resuming from the newest complete checkpoint; every rank calls this.

    `report` is called on rank 0 every `report_every_s` and at the end, `heartbeat` on every rank after each
    step with the number of steps done. `on_checkpoint` is called with the path of each checkpoint and each
    average that is kept, on the thread that writes them. The last checkpoint is written after the last step,
    and then `TrainStep.weights` to `folder/STAGE.safetensors`. Raises DivergedError if more than
    `max_skipped` steps had a loss or gradient that is not finite.
    """
    config = run.config
    started = time.monotonic()
    train_step = TrainStep(
        run.stage,
        config,
        initial=run.initial,
        device=run.device,
        micro_batch=run.micro_batch,
        recompute_px=run.recompute_px,
        compiled=run.compiled,
    )
    active_ranks = train_step.active_ranks
    contract = _resume_contract(run)
    state = load_checkpoint(run.folder / "checkpoints", contract, _with_defaults)
    first = 0 if state is None else state.step
    skipped = [] if state is None else list(state.skipped)
    losses: list[Tensor] = []  # since the last checkpoint
    _check_same_step(first, run.uri or str(run.folder), train_step.device, active_ranks.world)
    if state is not None:
        train_step.restore(state)
    loader = PositionLoader(run.dataset, run.stage, config, run.column)
    window = _MetricsWindow(
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
    writer = AsyncCheckpointWriter(on_checkpoint, while_waiting=lambda: heartbeat(done))
    with closing(batches), writer:
        for step in range(first, config.num_steps):
            with window.waiting("data"):
                share = next(batches)
            update = train_step.step(share, step)
            if not update.applied:
                skipped.append(step)
                _report_skipped(
                    run,
                    loader,
                    skipped,
                    float(update.loss),
                    on_checkpoint if active_ranks.rank == 0 else None,
                )
            elif active_ranks.rank == 0:
                losses.append(update.loss)
            window.add(
                step, update.loss if update.applied else None, train_step.learning_rate(step), len(skipped)
            )
            if active_ranks.rank == 0:
                with window.waiting("writer"):
                    _write_due(run, train_step, writer, step + 1, contract, skipped, losses)
            done = step + 1
            heartbeat(done)

    if active_ranks.rank == 0:
        save_stage(run.folder, run.stage, train_step.weights, origin=run.origin)
    if active_ranks.world > 1:
        dist.barrier()
    window.close()
    steps = config.num_steps
    return TrainResult(
        run.folder, steps, steps * config.global_batch, window.loss, first, time.monotonic() - started
    )


def _write_due(
    run: Run,
    train_step: TrainStep,
    writer: AsyncCheckpointWriter,
    done: int,
    contract: dict[str, Any],
    skipped: Sequence[int],
    losses: list[Tensor],
) -> None:
    """Queue the average and the checkpoint that are due after `done` steps; a checkpoint clears `losses`."""
    config = run.config
    writer.check()
    samples = done * config.global_batch
    if _crosses(config.average_samples, samples, config.global_batch):
        folder = run.folder / AVERAGES / f"{samples:09d}"
        averages = {folder / power.name: copied(power.weights) for power in train_step.powers}
        weights = copied(train_step.weights)

        def save_averages() -> Path:
            for target, average in averages.items():
                save_stage(target, run.stage, average, origin=run.origin)
            return save_stage(folder, run.stage, weights, origin=run.origin).parent

        writer.write(save_averages)
    if done % max(1, config.checkpoint_samples // config.global_batch) == 0 or done == config.num_steps:
        loss = float(torch.stack(losses).mean()) if losses else None
        losses.clear()
        state = train_step.snapshot(done, contract, skipped, loss)
        writer.write(
            lambda: save_checkpoint(
                run.folder / "checkpoints", state, config.keep_checkpoints, config.keep_best
            )
        )


def _crosses(every: int | None, samples: int, batch: int) -> bool:
    """Whether a multiple of `every` lies in the batch that ends at `samples`."""
    return every is not None and samples // every > (samples - batch) // every


def _report_skipped(
    run: Run,
    loader: PositionLoader,
    skipped: Sequence[int],
    loss: float,
    on_checkpoint: Callable[[Path], None] | None,
) -> None:
    """Record a skipped step with the keys of its faces, if there is an `on_checkpoint`.

    Raises DivergedError after more than `max_skipped` of them.
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
            f"training.max_skipped={config.max_skipped}; see {run.uri or run.folder}/{SKIPPED} for the "
            "faces, or lower training.learning_rate"
        )


class _MetricsWindow:
    """Collects the steps between two reports; every rank has the loss of the window, rank 0 reports it."""

    def __init__(
        self,
        config: TrainingConfig,
        report: Callable[[StepMetrics], None],
        every_s: float,
        rank: int,
        loss: float,
    ) -> None:
        self.config = config
        self.report = report
        self.every_s = every_s
        self.rank = rank
        self.loss = loss
        self._last: tuple[int, float, int] | None = None
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._steps = 0
        self._waited: dict[str, float] = {"data": 0.0, "writer": 0.0}
        self._since = time.monotonic()

    @contextmanager
    def waiting(self, cause: Literal["data", "writer"]) -> Iterator[None]:
        """Count the time inside the context as waiting for `cause`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited[cause] += time.monotonic() - started

    def add(self, step: int, loss: Tensor | None, rate: float, skipped: int) -> None:
        """Add a step, whose loss is None if it was skipped; report if the window is long enough."""
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
        data = self._waited["data"] / elapsed
        writer = self._waited["writer"] / elapsed
        if self.rank == 0:
            samples = (step + 1) * self.config.global_batch
            self.report(StepMetrics(step + 1, samples, self.loss, speed, data, writer, rate, skipped))
        self._clear()


def _check_same_step(first: int, place: str, device: torch.device, world: int) -> None:
    """Refuse ranks that found different checkpoints: they would resume from different weights in silence."""
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
    """All that the weights depend on: a checkpoint must have the same to be resumed from."""
    return {
        "stage": to_dict(run.stage),
        "training": _settings(run.config),
        "content_id": run.dataset.info.content_id,
        "column": run.column or "",
        "initial": run.initial_digest,
    }


def _with_defaults(contract: Mapping[str, Any]) -> dict[str, Any]:
    """The contract of a checkpoint of any version: settings that it lacks have their defaults.

    `NON_IDENTITY_FIELDS` are left out.
    """
    training = dict(contract["training"])
    if training["optimizer"] == "adamw":
        training.setdefault("weight_decay", 0.01)  # torch's default, which early versions trained with
    if "parts" in training:  # the name of the field in early versions
        training["reduce_leaves"] = training.pop("parts")
    stage = from_dict(StageSpec, contract["stage"])
    return {**contract, "stage": to_dict(stage), "training": _settings(from_dict(TrainingConfig, training))}


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in NON_IDENTITY_FIELDS}
