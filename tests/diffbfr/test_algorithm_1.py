"""Mode `faithful` against Algorithm 1 written from the page in numpy: its own tables, its own loops, every
state of all 3,100 steps.

The networks are replaced by the exact denoiser of pixels that are Gaussian about the condition. It is linear,
so that the rounding of float32 can be followed through the chain: an error of y_t or of the condition goes on
with a known factor, and each step adds at most `ROUNDINGS` roundings of its terms. The states must agree to
that bound, pixel by pixel; nothing is tuned.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffbfr.cascade import Cascade
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.samplers import keyed_noise
from diffbfr.stages import IRM1, IRM2, TEM, StageSpec
from tests.diffbfr.tiny import TINY_STAGES

Array = NDArray[np.float64]
KEYS = ("a/0/0", "b/0/0")
SPREAD, MEAN = 0.1, -0.2
"""Deviation of the pixels about the condition, and what stands for the condition of TEM."""
UNIT = 2.0**-24
"""A rounding of float32, relative."""
ROUNDINGS = 10
"""In a step: y_t and epsilon as they are handed over, three factors cast from float64, two products, a
difference, a quotient, a sum.
"""
OVERSHOOT = 2.0
"""More than an error can grow by in the bicubic kernel: four times enlarged, the absolute weights of a
pixel sum to 1.83 at most.
"""


class Exact(Denoiser):
    """The exact denoiser in the place of a network; keeps every y_t that it is shown."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.seen: list[Array] = []

    def epsilon(self, y_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """E[noise | y_t], rounded once."""
        self.seen.append(y_t.double().numpy())
        mean = np.full(y_t.shape, MEAN) if condition is None else condition.double().numpy()
        assert len(set(t.tolist())) == 1
        gamma = float(self.schedule.gamma[int(t[0])])
        estimate = (
            np.sqrt(1 - gamma) * (self.seen[-1] - np.sqrt(gamma) * mean) / (gamma * SPREAD**2 + 1 - gamma)
        )
        return torch.from_numpy(estimate).float()


@dataclass(frozen=True)
class State:
    """y_t in float64, and how far float32 may be from it."""

    y: Array
    bound: Array


def _walk(stage: StageSpec, table_6: StageSpec, before: State | None, condition: State | None) -> list[State]:
    """One loop of Algorithm 1: y_N, y_{N-1}, .. y_0."""
    spec = table_6.schedule
    beta = [
        spec.beta_1 + (spec.beta_T - spec.beta_1) * i / (spec.num_steps - 1) for i in range(spec.num_steps)
    ]
    alpha = [1 - b for b in beta]
    gamma = np.multiply.accumulate(alpha)
    keyed = keyed_noise(KEYS, stage.name, stage.px)

    def drawn(step: int) -> Array:
        return keyed(torch.full((len(KEYS),), step)).double().numpy()

    first, y_0 = drawn(table_6.start + 1), before
    state = State(first, np.zeros_like(first))
    if y_0 is not None:
        signal, noise = np.sqrt(gamma[table_6.start - 1]), np.sqrt(1 - gamma[table_6.start - 1])
        terms = signal * np.abs(y_0.y) + noise * np.abs(first)
        state = State(signal * y_0.y + noise * first, signal * y_0.bound + ROUNDINGS * UNIT * terms)
    states, known = [state], condition or State(np.full_like(first, MEAN), np.zeros_like(first))
    for t in range(table_6.start, 0, -1):
        a, g = alpha[t - 1], gamma[t - 1]
        slope = np.sqrt(1 - g) / (g * SPREAD**2 + 1 - g)
        estimate = slope * (state.y - np.sqrt(g) * known.y)
        drift = (1 - a) / np.sqrt(1 - g)
        fresh = np.sqrt(1 - a) * (drawn(t) if t > 1 else np.zeros_like(first))
        y = (state.y - drift * estimate) / np.sqrt(a) + fresh
        handed_on = (
            np.abs(1 - drift * slope) / np.sqrt(a) * state.bound
            + drift * slope * np.sqrt(g / a) * known.bound
        )
        terms = (np.abs(state.y) + drift * np.abs(estimate)) / np.sqrt(a) + np.abs(fresh) + np.abs(y)
        state = State(y, handed_on + ROUNDINGS * UNIT * terms)
        states.append(state)
    return states


def _resized(state: State, px: int) -> State:
    enlarged = upsample(torch.from_numpy(state.y), px, clamp=False).numpy()
    most = state.bound.max(axis=(2, 3), keepdims=True)
    return State(enlarged, np.broadcast_to(OVERSHOOT * most + ROUNDINGS * UNIT * 2, enlarged.shape))


@pytest.mark.slow
def test_every_state_of_all_three_stages_is_that_of_algorithm_1() -> None:
    exact = {name: Exact(replace(stage, resize_clamp=False)) for name, stage in TINY_STAGES.items()}
    faces = torch.rand(len(KEYS), 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    made = Cascade(exact["irm1"], exact["irm2"], exact["tem"]).restore(faces, KEYS, "faithful")

    x_0 = State(faces.double().numpy(), np.zeros(faces.shape))
    low = _walk(exact["irm1"].spec, IRM1, None, x_0)
    enlarged = _resized(low[-1], 32)
    high = _walk(exact["irm2"].spec, IRM2, enlarged, enlarged)
    polished = _walk(exact["tem"].spec, TEM, high[-1], None)

    for name, states, result in (
        ("irm1", low, made.irm1),
        ("irm2", high, made.irm2),
        ("tem", polished, made.tem),
    ):
        seen = [*exact[name].seen, result.double().numpy()]  # type: ignore[index]
        assert len(seen) == len(states) == {"irm1": 2001, "irm2": 1001, "tem": 101}[name]
        for found, state in zip(seen, states, strict=True):
            assert (np.abs(found - state.y) <= state.bound).all()
        assert max(float(state.bound.max()) for state in states) < 0.25 / 127.5  # a quarter of an 8-bit level
    assert float(made.irm1.abs().max()) > 1  # nothing was clamped
    assert float(made.irm2.abs().max()) > 1
