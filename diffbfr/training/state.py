"""A training's state to and from a checkpoint: the network, its averages and the optimiser's moments, by the names of parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffbfr.checkpoint import TrainingState
from diffbfr.denoiser import Denoiser
from diffbfr.ema import Ema, PowerEma


def snapshot(
    step: int,
    samples: int,
    contract: dict[str, object],
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    averages: Sequence[Ema | PowerEma],
) -> TrainingState:
    """Everything that a run needs to go on after `step` steps, by name."""
    moments: dict[str, Tensor] = {}
    for name, p in denoiser.net.named_parameters():
        for kind, value in optimizer.state[p].items():
            moments[f"{kind}/{name}"] = value
    kept = {average.name: average.weights for average in averages}
    return TrainingState(step, samples, contract, {"model": denoiser.net.state_dict(), "optimizer": moments, **kept})


def restore(state: TrainingState | None, denoiser: Denoiser, optimizer: torch.optim.Optimizer, averages: Sequence[Ema | PowerEma]) -> int:
    """Put a checkpoint back; returns the number of steps already done."""
    if state is None:
        return 0
    denoiser.net.load_state_dict(state.tensors["model"])
    for average in averages:
        for name, value in state.tensors[average.name].items():
            average.weights[name].copy_(value)
    for name, p in denoiser.net.named_parameters():
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            value = state.tensors["optimizer"][f"{kind}/{name}"]
            optimizer.state[p][kind] = value.clone() if kind == "step" else torch.empty_like(p).copy_(value)
    return state.step
