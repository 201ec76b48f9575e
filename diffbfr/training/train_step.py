"""One optimiser step of a stage over a rank's share of a global batch: network, optimiser and averages.

The process group, if there is one, belongs to the caller; this module only asks `torch.distributed` for it.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch import distributed as dist

from diffbfr.checkpoint import TrainingState
from diffbfr.cost.malloc import tune_malloc
from diffbfr.ema import Ema, PowerEma
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.stages import StageSpec
from diffbfr.training.active_ranks import active_ranks
from diffbfr.training.batches import Batch
from diffbfr.training.config import TrainingConfig
from diffbfr.training.deterministic_reduce import TreeAllReduce
from diffbfr.training.distillation import distillation_loss
from diffbfr.training.objective import stage_loss

_LAYOUTS = {"cuda": torch.channels_last}
"""Memory format of weights and images by device.

A CPU trains 5 to 7 % faster in torch's default (`tests.benchmarks.networks`), although it samples faster in
channels_last.
"""


@dataclass(frozen=True)
class UpdateResult:
    """The loss of a step, a mean over the global batch, and whether the weights were updated."""

    loss: Tensor
    applied: bool
    """False where the loss or the gradient was NaN or infinite: then no rank has changed anything."""


class TrainStep:
    """The training state of a stage; every rank has one, and a step leaves the same weights on all of them.

    `micro_batch` bounds how many images are held at once: the gradients of a larger share are accumulated.
    Blocks of at least `recompute_px` are run again in the backward pass. `compiled` passes the network to
    torch.compile. These three change the order of sums and nothing else. A distilled stage has `initial` for
    its teacher.
    """

    def __init__(
        self,
        stage: StageSpec,
        config: TrainingConfig,
        *,
        initial: Denoiser | None = None,
        device: str = "cpu",
        micro_batch: int | None = None,
        recompute_px: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.micro_batch = micro_batch
        if self.device.type == "cpu":
            tune_malloc()
        self._layout = _LAYOUTS.get(self.device.type, torch.contiguous_format)
        torch.manual_seed(config.seed)
        denoiser = Denoiser(stage)
        if initial is not None:
            denoiser.net.load_state_dict(initial.net.state_dict())
        self.denoiser: Denoiser = denoiser.to(self.device, memory_format=self._layout).train()  # type: ignore[call-overload]
        self._teacher = self._as_teacher(initial) if stage.distilled else None
        self.denoiser.net.recompute_px = recompute_px
        optimizer = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        self.optimizer: torch.optim.Optimizer = optimizer(
            self.denoiser.net.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = None if config.ema_half_life is None else Ema(self.denoiser.net, config.ema_half_life)
        self.powers = [PowerEma(self.denoiser.net, length) for length in config.ema_lengths]
        self._averages: list[Ema | PowerEma] = [*([] if self.ema is None else [self.ema]), *self.powers]
        if compiled:
            self.denoiser.net.compile()
        self.active_ranks = active_ranks(config.global_batch, config.reduce_leaves)
        self._net: nn.Module = self.denoiser
        self._tree: TreeAllReduce | None = None
        if config.reduce_leaves is not None:
            self._tree = TreeAllReduce(
                config.reduce_leaves, config.global_batch, micro_batch, self.active_ranks
            )
        elif self.active_ranks.world > 1:
            self._net = nn.parallel.DistributedDataParallel(self.denoiser, gradient_as_bucket_view=True)
        self._is_warm = self._tree is not None or self.active_ranks.world < 3

    def _as_teacher(self, initial: Denoiser | None) -> Denoiser:
        """The weights that a student starts from, as its teacher; a student is trained without dropout."""
        if initial is None:
            raise UsageError(
                f"{self.denoiser.spec.name} is distilled and starts from random weights; expected a teacher; "
                "set init to a trained cascade"
            )
        self.denoiser.eval()
        return initial.ready(self.device)

    def step(self, share: Batch, step: int) -> UpdateResult:
        """Take optimiser step number `step` (from 0) on this rank's share of its global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        share = _to(share, self.device, self._layout)
        if self._tree is not None:
            loss = self._tree.backward(share, self._loss, list(self.denoiser.net.parameters()))
        else:
            self._warm_up_ddp(share)
            loss = self._backward(share)
            if self.active_ranks.world > 1:
                dist.all_reduce(loss)
                loss /= self.active_ranks.world
        if not bool(torch.isfinite(loss + self._gradient_norm())):
            return UpdateResult(loss, applied=False)
        self.optimizer.step()
        for average in self._averages:
            average.update(self.denoiser.net, self.config.global_batch, (step + 1) * self.config.global_batch)
        return UpdateResult(loss, applied=True)

    def learning_rate(self, step: int) -> float:
        """The rate of a step: a linear warm-up, a constant, and a linear decay to zero at the end."""
        config = self.config
        samples = (step + 0.5) * config.global_batch
        up = min(1.0, samples / config.warmup_samples) if config.warmup_samples else 1.0
        down = (
            min(1.0, (config.num_samples - samples) / config.decay_samples) if config.decay_samples else 1.0
        )
        return config.learning_rate * min(up, max(down, 0.0))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights that a training ends with: averaged, or the last ones where no average is kept."""
        return dict(self.denoiser.net.named_parameters()) if self.ema is None else self.ema.weights

    def snapshot(
        self, step: int, contract: dict[str, object], skipped: Sequence[int], loss: float | None = None
    ) -> TrainingState:
        """Copy the state from which a run can resume after `step` steps to the CPU."""
        net = self.denoiser.net
        moments: dict[str, Tensor] = {}
        for name, p in net.named_parameters():
            moments |= {f"{kind}/{name}": value for kind, value in self.optimizer.state[p].items()}
        groups = {
            "model": net.state_dict(),
            "optimizer": moments,
            **{average.name: average.weights for average in self._averages},
        }
        copies = {group: copied(tensors) for group, tensors in groups.items()}
        return TrainingState(step, step * self.config.global_batch, contract, copies, tuple(skipped), loss)

    def restore(self, state: TrainingState) -> None:
        """Continue from a snapshot."""
        self.denoiser.net.load_state_dict(state.tensors["model"])
        for average in self._averages:
            for name, value in state.tensors[average.name].items():
                average.weights[name].copy_(value)
        for name, p in self.denoiser.net.named_parameters():
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                moment = state.tensors["optimizer"].get(f"{kind}/{name}")
                if moment is not None:
                    kept = torch.zeros((), device=p.device) if kind == "step" else torch.empty_like(p)
                    self.optimizer.state[p][kind] = kept.copy_(moment)

    def _warm_up_ddp(self, share: Batch) -> None:
        """Run one backward pass and discard it, once, with three ranks or more.

        DistributedDataParallel assigns gradients to other buckets after its first pass, and with three ranks
        or more the position of an element in its bucket decides the order in which a ring adds it. Without
        this pass a resumed training would add its first step in another order than one that was not stopped.
        """
        if not self._is_warm:
            self._backward(share)
            self.optimizer.zero_grad(set_to_none=True)
            self._is_warm = True

    def _backward(self, share: Batch) -> Tensor:
        """Leave the gradients of the share's mean loss in the parameters; return that loss.

        The gradients are reduced over the ranks in the backward pass of the last micro-batch.
        """
        count = len(share.t)
        size = self.micro_batch or count
        parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
        total = torch.zeros((), device=self.device)
        for part in parts:
            accumulates = self.active_ranks.world > 1 and part is not parts[-1]
            with self._net.no_sync() if accumulates else nullcontext():  # type: ignore[operator]
                loss = self._loss(share.cut(part)) * (
                    self.active_ranks.weight * (part.stop - part.start) / count
                )
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, share: Batch) -> Tensor:
        """The mean loss of some images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            if self._teacher is not None and self.config.teacher_steps is not None:
                steps = self.config.teacher_steps
                return distillation_loss(self.denoiser, self._net, self._teacher, share, steps)
            return stage_loss(self.denoiser, self._net, share, self.config.min_snr_gamma, self.config.t_max)

    def _gradient_norm(self) -> Tensor:
        """The norm of all gradients before clipping; clips them to `max_gradient_norm` if that is set."""
        parameters = list(self.denoiser.net.parameters())
        if self.config.max_gradient_norm is not None:
            return nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, which later steps do not change."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def _to(batch: Batch, device: torch.device, layout: torch.memory_format) -> Batch:
    def move(x: Tensor) -> Tensor:
        return x.to(device, memory_format=layout)

    return replace(
        batch,
        y_0=move(batch.y_0),
        condition=None if batch.condition is None else move(batch.condition),
        noise=move(batch.noise),
        valid=None if batch.valid is None else move(batch.valid),
    )
