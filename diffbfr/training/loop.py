"""One training loop for the three stages (Eq. 8, 9, 11): the same code in one process, under torchrun and under Ray.

A run is a row of global positions 0, 1, 2, ...; step s consumes positions [s B, (s + 1) B) of the global batch B, of which each rank
takes a contiguous slice. Sample, variant, t and noise of a position are keyed by (seed, position), never by rank or time: any
number of ranks sees the same numbers, and a resumed run continues as if nothing had happened. The process group, if there is one, is
the caller's; here only `torch.distributed` is asked who we are.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist

from diffbfr.checkpoint import load_checkpoint, save_checkpoint, save_stage
from diffbfr.denoiser import Denoiser
from diffbfr.ema import Ema, PowerEma
from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.spec import to_dict
from diffbfr.stages import StageSpec
from diffbfr.training.batches import Batch, PositionLoader, position_seed
from diffbfr.training.config import TrainingConfig
from diffbfr.training.objective import stage_loss
from diffbfr.training.state import restore, snapshot

AVERAGES = "averages"
"""Folder of the averaged weights that `TrainingConfig.average_samples` keeps, each named by its number of samples."""


@dataclass(frozen=True)
class StepMetrics:
    """What rank 0 tells about a stretch of steps: mean loss, speed and the share of time spent waiting for data."""

    step: int
    samples: int
    loss: float
    """A mean over the stretch and over all ranks."""
    images_per_s: float
    data_share: float
    learning_rate: float


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves: averaged weights in `folder`, and how it ended."""

    folder: Path
    steps: int
    samples: int
    loss: float
    """Of the last stretch; not a number if there was nothing left to train."""
    resumed_from: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One training: what, on which data, and where its checkpoints (`folder/checkpoints`) and weights (`folder`) go."""

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


def train(
    run: Run,
    report: Callable[[StepMetrics], None] = lambda metrics: None,
    sealed: Callable[[Path], None] = lambda path: None,
    report_every_s: float = 2.0,
) -> TrainResult:
    """Train a stage to `num_samples`, going on from the newest sealed checkpoint in the run's folder; every rank calls this.

    `report` hears from rank 0 every few seconds and at the end, `sealed` the path of each checkpoint and of each average that is kept.
    The averaged weights are written to `folder/STAGE.safetensors` when the run ends.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    config, device = run.config, torch.device(run.device)
    if config.global_batch % world:
        raise UsageError(f"{run.stage.name} has global_batch={config.global_batch}; expected a multiple of the {world} workers")
    started = time.monotonic()
    torch.manual_seed(config.seed)
    denoiser = Denoiser(run.stage)
    if run.initial is not None:
        denoiser.net.load_state_dict(run.initial.net.state_dict())
    denoiser = denoiser.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = _optimizer(denoiser, config)
    ema = Ema(denoiser.net, config.ema_half_life)
    powers = [PowerEma(denoiser.net, length) for length in config.ema_lengths]
    checkpoints, averages = run.folder / "checkpoints", run.folder / AVERAGES
    contract = _contract(run)
    first = restore(load_checkpoint(checkpoints, contract), denoiser, optimizer, [ema, *powers])
    _check_same_step(first, checkpoints, device, world)
    net: nn.Module = nn.parallel.DistributedDataParallel(denoiser, gradient_as_bucket_view=True) if world > 1 else denoiser
    loader = PositionLoader(run.dataset, run.stage, config, run.column)
    batches = loader.batches(first * config.global_batch, rank, world, run.readers)
    stretch = _Stretch(config, report, report_every_s, rank)
    every = max(1, config.checkpoint_samples // config.global_batch)

    for step in range(first, config.num_steps):
        waited = time.monotonic()
        batch = _to(next(batches), device)
        waited = time.monotonic() - waited
        rate = _learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        _drop_out_by_position(config.seed, step, rank)
        loss = stage_loss(denoiser, net, batch, config.min_snr_gamma)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(denoiser.parameters(), config.max_gradient_norm)
        optimizer.step()
        samples = (step + 1) * config.global_batch
        for average in (ema, *powers):
            average.update(denoiser.net, config.global_batch, samples)
        stretch.add(step, samples, _mean_over_ranks(loss.detach(), world), waited, rate)
        if rank == 0 and _crosses(config.average_samples, samples, config.global_batch):
            for power in powers:
                save_stage(averages / f"{samples:09d}" / power.name, run.stage, power.weights)
            sealed(save_stage(averages / f"{samples:09d}", run.stage, ema.weights).parent)
        if rank == 0 and (step + 1) % every == 0 and step + 1 < config.num_steps:
            sealed(save_checkpoint(checkpoints, snapshot(step + 1, samples, contract, denoiser, optimizer, [ema, *powers]), keep=2))

    if rank == 0:
        save_stage(run.folder, run.stage, ema.weights)
    if world > 1:
        dist.barrier()
    stretch.close()
    batches.close()
    steps = config.num_steps
    return TrainResult(run.folder, steps, steps * config.global_batch, stretch.loss, first, time.monotonic() - started)


def _crosses(every: int | None, samples: int, batch: int) -> bool:
    """Whether a multiple of `every` lies in the batch that ends at `samples`."""
    return every is not None and samples // every > (samples - batch) // every


class _Stretch:
    """Collects the steps between two reports; every rank knows its last loss, rank 0 tells it."""

    def __init__(self, config: TrainingConfig, report: Callable[[StepMetrics], None], every_s: float, rank: int) -> None:
        self.config, self.report, self.every_s, self.rank = config, report, every_s, rank
        self.loss = float("nan")
        self._last: tuple[int, int, float] | None = None
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._waited = 0.0
        self._since = time.monotonic()

    def add(self, step: int, samples: int, loss: Tensor, waited: float, rate: float) -> None:
        self._losses.append(loss)
        self._waited += waited
        self._last = (step, samples, rate)
        if time.monotonic() - self._since >= self.every_s:
            self._tell()

    def close(self) -> None:
        if self._losses:
            self._tell()

    def _tell(self) -> None:
        assert self._last is not None
        step, samples, rate = self._last
        elapsed = max(time.monotonic() - self._since, 1e-9)
        self.loss = float(torch.stack(self._losses).mean())
        speed = len(self._losses) * self.config.global_batch / elapsed
        if self.rank == 0:
            self.report(StepMetrics(step + 1, samples, self.loss, speed, self._waited / elapsed, rate))
        self._clear()


def _mean_over_ranks(loss: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(loss)
    return loss / world


def _check_same_step(first: int, checkpoints: Path, device: torch.device, world: int) -> None:
    """Refuse ranks that found different checkpoints: they would go on from different weights without a word."""
    if world == 1:
        return
    firsts = [torch.zeros((), dtype=torch.long, device=device) for _ in range(world)]
    dist.all_gather(firsts, torch.tensor(first, device=device))
    if any(int(other) != first for other in firsts):
        raise UsageError(
            f"ranks found checkpoints of steps {[int(other) for other in firsts]} in {checkpoints}; "
            "expected the same one; choose a --root on storage that every machine shares"
        )


def _contract(run: Run) -> dict[str, object]:
    """What a checkpoint must agree on before anyone reads its tensors."""
    return {
        "stage": to_dict(run.stage),
        "training": to_dict(run.config),
        "content_id": run.dataset.info.content_id,
        "column": run.column or "",
        "initial": run.initial_digest,
    }


def _optimizer(denoiser: Denoiser, config: TrainingConfig) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(denoiser.net.parameters(), lr=config.learning_rate, foreach=True)


def _learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, constant, and a linear fall to zero at the end."""
    samples = (step + 0.5) * config.global_batch
    up = min(1.0, samples / config.warmup_samples) if config.warmup_samples else 1.0
    down = min(1.0, (config.num_samples - samples) / config.decay_samples) if config.decay_samples else 1.0
    return config.learning_rate * min(up, max(down, 0.0))


def _drop_out_by_position(seed: int, step: int, rank: int) -> None:
    """Seed dropout by the step, so that a resumed run draws what the undisturbed one drew."""
    torch.manual_seed(position_seed(seed, f"dropout{rank}", step))


def _to(batch: Batch, device: torch.device) -> Batch:
    def move(x: Tensor) -> Tensor:
        return x.to(device, memory_format=torch.channels_last)

    condition = None if batch.condition is None else move(batch.condition)
    return Batch(move(batch.y_0), condition, move(batch.noise), batch.t, batch.fraction)
