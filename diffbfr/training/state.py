"""A training's state to and from a checkpoint: the network, its average and the optimiser's moments, by the names of parameters."""

import torch
from torch import Tensor

from diffbfr.checkpoint import TrainingState
from diffbfr.denoiser import Denoiser
from diffbfr.ema import Ema


def snapshot(
    step: int, samples: int, contract: dict[str, object], denoiser: Denoiser, optimizer: torch.optim.Optimizer, ema: Ema
) -> TrainingState:
    """Everything that a run needs to go on after `step` steps, by name."""
    moments: dict[str, Tensor] = {}
    for name, p in denoiser.net.named_parameters():
        for kind, value in optimizer.state[p].items():
            moments[f"{kind}/{name}"] = value
    return TrainingState(step, samples, contract, {"model": denoiser.net.state_dict(), "ema": ema.weights, "optimizer": moments})


def restore(state: TrainingState | None, denoiser: Denoiser, optimizer: torch.optim.Optimizer, ema: Ema) -> int:
    """Put a checkpoint back; returns the number of steps already done."""
    if state is None:
        return 0
    denoiser.net.load_state_dict(state.tensors["model"])
    for name, average in state.tensors["ema"].items():
        ema.weights[name].copy_(average)
    for name, p in denoiser.net.named_parameters():
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            value = state.tensors["optimizer"][f"{kind}/{name}"]
            optimizer.state[p][kind] = value.clone() if kind == "step" else torch.empty_like(p).copy_(value)
    return state.step
