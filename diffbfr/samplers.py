"""Sampling: Algorithm 1's loop and the fast solvers, from a full or a truncated start.

The faces of a batch may be at different steps: each follows its own grid from its own start, and waits at t =
0, the clean image, until all others have reached it. Each has its own noise, too: `noise(steps)` returns a
draw for every face at its step, keyed by the face (`keyed_noise`), so that a face restored alone equals the
same face in any batch. State is float32. The solvers work on the paper's discrete schedule: a grid is a
falling list of steps t.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffbfr.diffusion import p_mean_variance, predict_y_0, q_sample
from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import ReverseVariance, SamplerSpec
from diffbfr.step_grid import check_starts

Epsilon: TypeAlias = Callable[[Float[Tensor, "b c h w"], Int[Tensor, " b"]], Float[Tensor, "b _d h w"]]
"""epsilon_theta(y_t, t), with the condition already bound; its value for a face at t = 0 is not used.

It returns the noise of every channel, and as many channels of variance range after it where a learned
variance is asked for.
"""
Noise: TypeAlias = Callable[[Int[Tensor, " b"]], Float[Tensor, "b c h w"]]
"""Standard normal noise of every face at its step.

Step `start + 1` is the draw that diffuses the start (Eq. 2); at step 0 none is used.
"""


def keyed_noise(
    keys: Sequence[str],
    stage: str,
    px: int,
    device: torch.device | str = "cpu",
    *,
    threads: int | None = None,
) -> Noise:
    """Noise that depends only on (key, stage, step): one CPU generator per image and step; 0 at step 0.

    For a GPU the faces are drawn in parallel by `threads` (by default one for each core of the process) and
    sent without waiting, while the GPU computes the estimate that was requested before. The numbers are the
    same.
    """
    to_gpu = torch.device(device).type == "cuda"
    pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) if to_gpu or threads else None

    def draw(steps: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        images = torch.zeros(len(keys), 3, px, px, pin_memory=to_gpu)

        def fill(image: Tensor, key: str, step: int) -> None:
            if step:
                seed = (
                    int.from_bytes(hashlib.sha256(f"{key}/{stage}/{step}".encode()).digest()[:8], "little")
                    >> 1
                )
                torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), out=image)

        at = steps.tolist()
        if len(at) != len(keys):
            raise UsageError(f"{len(at)} steps for {len(keys)} noise keys; expected one each")
        list((pool.map if pool else map)(fill, images, keys, at))
        return images.to(device, non_blocking=True)

    return draw


def start_from(
    y_0: Float[Tensor, "b c h w"] | None, starts: Sequence[int], schedule: NoiseSchedule, noise: Noise
) -> Float[Tensor, "b c h w"]:
    """y_N of Algorithm 1, with one N per face.

    It is pure noise for a full start (y_0 is None), else y_0 diffused to step N by Eq. 2 (truncated).
    """
    check_starts(starts, schedule)
    t = torch.tensor(starts)
    first = noise(t + 1)
    return first if y_0 is None else q_sample(y_0, t, schedule, first)


@torch.no_grad()
def p_sample_loop(
    epsilon: Epsilon,
    y_start: Float[Tensor, "b c h w"],
    starts: Sequence[int],
    schedule: NoiseSchedule,
    noise: Noise,
    *,
    variance: ReverseVariance = "beta",
    clamp: bool = False,
) -> Float[Tensor, "b c h w"]:
    """Algorithm 1: for t = N..1 the step of Eq. 4 with sigma_t = sqrt(1 - alpha_t), no clamp.

    At t = 1 no noise is added. `variance="posterior"` and `clamp` are what SR3's code does instead;
    `variance="learned"` uses the second half of TEM's outputs (`p_mean_variance`). In the paper the second of
    the three loops lacks a bracket; it is read like the others.
    """
    _check_one_each(starts, y_start)
    check_starts(starts, schedule)
    y_t = y_start
    for passed in range(max(starts)):
        t = (torch.tensor(starts) - passed).clamp_min(0)
        output = epsilon(y_t, t)
        estimate = output[:, : y_t.shape[1]]
        extra = output[:, y_t.shape[1] :]
        variance_range = extra if variance == "learned" and extra.shape[1] else None
        step = p_mean_variance(
            y_t, t, schedule, estimate, variance=variance, variance_range=variance_range, clamp=clamp
        )
        after = step.mean
        noisy = t > 1
        if bool(noisy.any()):
            after = _where(noisy, after + step.sigma * noise(torch.where(noisy, t, 0)), after)
        y_t = _where(t > 0, after, y_t)
    return y_t


@torch.no_grad()
def solve(
    epsilon: Epsilon,
    y_start: Float[Tensor, "b c h w"],
    grids: Sequence[Sequence[int]],
    schedule: NoiseSchedule,
    spec: SamplerSpec,
    noise: Noise,
    *,
    clamp: bool = True,
) -> Float[Tensor, "b c h w"]:
    """Follow each face's grid with one of the fast solvers; the last evaluation of a grid gives y_0.

    `ddim` (Song et al. 2021), `dpmpp_2m` and its stochastic form `sde_dpmpp_2m` (Lu et al. 2022, second
    order, midpoint) and `ancestral`, the reverse process of the grid's steps alone, with the variance of
    `spec`. `clamp` keeps every prediction of y_0 in [-1, 1].
    """
    _check_one_each(grids, y_start)
    path = _padded(grids, schedule)
    y = y_start
    earlier = y_start
    gains = [math.inf] * len(grids)
    for t, after in pairwise(path):
        y_0 = predict_y_0(y, t, schedule, epsilon(y, t))
        if clamp:
            y_0 = y_0.clamp(-1, 1)
        y_0 = _where(t > 0, y_0, y)
        if not bool(after.any()):
            break
        moves = [_move(*steps, schedule) for steps in zip(t.tolist(), after.tolist(), strict=True)]
        change = _column([move.gain / before for move, before in zip(moves, gains, strict=True)], y) * (
            y_0 - earlier
        )
        y = _where(after > 0, _advance(y, y_0, change, moves, spec, noise), y_0)
        earlier = y_0
        gains = [move.gain for move in moves]
    return y_0


@dataclass(frozen=True)
class _Move:
    """One face's move to a lower step, in float64.

    Its numbers are computed with `math`, face by face: torch rounds an exponential one way inside a vector
    and another way at its end.
    """

    t: int
    gamma_t: float
    gamma: float
    """gamma of the step that the face moves to."""
    gain: float
    """Increase of the half-log-SNR."""

    @property
    def sigma_t(self) -> float:
        return math.sqrt(1 - self.gamma_t)

    @property
    def sigma(self) -> float:
        return math.sqrt(1 - self.gamma)

    @property
    def scale(self) -> float:
        return math.sqrt(self.gamma)


_NO_MOVE: Final = _Move(t=0, gamma_t=0.0, gamma=0.5, gain=math.inf)
"""The move of a face that is at 0 or jumps to y_0; its result is not used."""


def _move(t: int, after: int, schedule: NoiseSchedule) -> _Move:
    if not t or not after:
        return _NO_MOVE
    gain = schedule.half_log_snr[after] - schedule.half_log_snr[t]
    return _Move(t, float(schedule.gamma[t]), float(schedule.gamma[after]), float(gain))


def _advance(
    y: Tensor, y_0: Tensor, change: Tensor, moves: Sequence[_Move], spec: SamplerSpec, noise: Noise
) -> Tensor:
    """y after one move of each face.

    `change` extrapolates y_0 over the move from its change over the previous one (0 in the first).
    """

    def each(coefficient: Callable[[_Move], float]) -> Tensor:
        return _column([coefficient(move) for move in moves], y)

    if spec.solver == "ddim":
        return each(lambda m: m.sigma / m.sigma_t) * y - each(lambda m: m.scale * math.expm1(-m.gain)) * y_0
    if spec.solver == "dpmpp_2m":
        return each(lambda m: m.sigma / m.sigma_t) * y - each(lambda m: m.scale * math.expm1(-m.gain)) * (
            y_0 + 0.5 * change
        )
    drawn = noise(torch.tensor([move.t for move in moves]))
    if spec.solver == "sde_dpmpp_2m":
        drift = each(lambda m: m.sigma / m.sigma_t * math.exp(-m.gain)) * y
        drift = drift - each(lambda m: m.scale * math.expm1(-2 * m.gain)) * (y_0 + 0.5 * change)
        return drift + each(lambda m: m.sigma * math.sqrt(-math.expm1(-2 * m.gain))) * drawn
    mean = each(lambda m: m.scale * (1 - m.gamma_t / m.gamma) / m.sigma_t**2) * y_0
    mean = mean + each(lambda m: math.sqrt(m.gamma_t / m.gamma) * m.sigma**2 / m.sigma_t**2) * y
    shrunk = spec.ancestral_variance == "posterior"
    return (
        mean
        + each(lambda m: (m.sigma / m.sigma_t if shrunk else 1.0) * math.sqrt(1 - m.gamma_t / m.gamma))
        * drawn
    )


def _padded(grids: Sequence[Sequence[int]], schedule: NoiseSchedule) -> Int[Tensor, "n b"]:
    """The faces' grids as columns; a face that has reached t = 0 stays there, and the last row is 0."""
    for grid in grids:
        if not grid:
            raise UsageError("the grid is empty; expected at least one step")
        check_starts(grid, schedule)
        if any(after >= before for before, after in pairwise(grid)):
            raise UsageError(f"the grid {list(grid)} does not fall; expected each step below the one before")
    rows = max(len(grid) for grid in grids) + 1
    return torch.tensor([[*grid, *[0] * (rows - len(grid))] for grid in grids]).T


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value per face as (b, 1, 1, 1), in the dtype and on the device of `like`."""
    return (
        torch.tensor(values, dtype=torch.float64).to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
    )


def _where(chosen: Bool[Tensor, " b"], this: Tensor, other: Tensor) -> Tensor:
    """Choose a whole image per face."""
    return this if bool(chosen.all()) else torch.where(chosen.to(this.device).view(-1, 1, 1, 1), this, other)


def _check_one_each(starts: Sequence[object], y: Tensor) -> None:
    if len(starts) != len(y):
        raise UsageError(f"{len(starts)} starts for {len(y)} faces; expected one each")
