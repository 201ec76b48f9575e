"""Averages of a training's weights: the exponential one that is used, and power-function averages.

`Ema` has a half-life in samples, so that it means the same at any batch size. `PowerEma` weights the samples
tau so far by tau^exponent (Karras et al. 2024, section 3.1). Snapshots of two of them along a training are a
basis: `combination` finds the sum of them that is nearest to the average of any other length (section 3.2,
post-hoc EMA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Ema:
    """Averaged weights of a network, in float32."""

    name = "ema"
    """Name of the average in a checkpoint."""

    def __init__(self, net: nn.Module, half_life: float, ramp: float = 0.1) -> None:
        self.half_life = half_life
        """Samples after which an old weight counts half."""
        self.ramp = ramp
        """The half-life is at most this fraction of the samples so far, so that the start is forgotten."""
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module, batch: int, samples: int) -> None:
        """Add the weights after a step over `batch` samples, `samples` in all."""
        half_life = max(min(self.half_life, self.ramp * samples), 1e-8)
        keep = 0.5 ** (batch / half_life)
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [p.detach() for _, p in net.named_parameters()], 1 - keep)

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        """Copy the averaged weights into a network."""
        for name, p in net.named_parameters():
            p.copy_(self.weights[name])


class PowerEma:
    """The mean of all weights so far, weighted by (number of samples)^exponent, in float32.

    `length` is the standard deviation of that weighting relative to the samples so far: 0.05 is short, 0.1
    long.
    """

    def __init__(self, net: nn.Module, length: float) -> None:
        self.length = length
        self.name = f"power-{length:g}"
        """Name of the average in a checkpoint and a snapshot."""
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}
        self._exponent = exponent_of(length)

    @torch.no_grad()
    def update(self, net: nn.Module, batch: int, samples: int) -> None:
        """Add the weights after a step over `batch` samples, `samples` in all.

        The first step's weights replace the initial ones.
        """
        keep = (1 - batch / samples) ** (self._exponent + 1)
        torch._foreach_lerp_(
            list(self.weights.values()), [p.detach() for _, p in net.named_parameters()], 1 - keep
        )


@dataclass(frozen=True)
class Snapshot:
    """A power-function average that was kept: after how many samples, and its length."""

    samples: int
    length: float


@dataclass(frozen=True)
class Combination:
    """A weighted sum of snapshots that approximates an average of another length."""

    coefficients: NDArray[np.float64]
    """One per snapshot; they sum to 1."""
    error: float
    """Root mean square difference of the two profiles, relative to that of the wanted average."""


def exponent_of(length: float) -> float:
    """The exponent whose power function has this relative standard deviation, sigma_rel in the paper.

    It solves length^2 (e + 2)^2 (e + 3) = e + 1.
    """
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.isreal(roots)].real.max())


def combination(snapshots: Sequence[Snapshot], length: float, samples: int) -> Combination:
    """Least squares between profiles, which are how each average weights the samples, in closed form.

    The coefficients sum to 1, so that a weight that never changed keeps its value; the paper leaves their sum
    free.
    """
    wanted = Snapshot(samples, length)
    count = len(snapshots)
    gram = np.array([_inner(a, b) for a, b in product(snapshots, repeat=2)]).reshape(count, count)
    towards = np.array([_inner(a, wanted) for a in snapshots])
    scale = np.sqrt(np.diag(gram))
    sides = np.stack([towards / scale, 1 / scale], axis=1)
    solved, even = (np.linalg.lstsq(gram / np.outer(scale, scale), sides, rcond=1e-12)[0] / scale[:, None]).T
    solved = solved + even * (1 - solved.sum()) / even.sum()
    whole = _inner(wanted, wanted)
    left = whole - 2 * solved @ towards + solved @ gram @ solved
    return Combination(solved, float(np.sqrt(max(left, 0.0) / whole)))


def _inner(a: Snapshot, b: Snapshot) -> float:
    """Integral over tau of the product of two profiles (e + 1) tau^e / t^(e + 1), each on 0..t."""
    e = exponent_of(a.length)
    f = exponent_of(b.length)
    end = min(a.samples, b.samples)
    shared = (end / a.samples) ** e * (end / b.samples) ** f * end / (a.samples * b.samples)
    return float((e + 1) * (f + 1) / (e + f + 1) * shared)
