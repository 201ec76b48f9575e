"""Exponential moving average of weights, with a half-life in samples so that it means the same at any batch size."""

import torch
from torch import Tensor, nn


class Ema:
    """Averaged weights of a network, in float32."""

    def __init__(self, net: nn.Module, half_life: float, ramp: float = 0.1) -> None:
        self.half_life = half_life
        """Samples after which an old weight counts half."""
        self.ramp = ramp
        """Early on the half-life is at most this share of the samples seen, so that the start is forgotten."""
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module, batch: int, samples: int) -> None:
        """Take the weights after a step over `batch` samples, `samples` in all."""
        half_life = max(min(self.half_life, self.ramp * samples), 1e-8)
        keep = 0.5 ** (batch / half_life)
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [p.detach() for _, p in net.named_parameters()], 1 - keep)

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        """Put the averaged weights into a network."""
        for name, p in net.named_parameters():
            p.copy_(self.weights[name])
