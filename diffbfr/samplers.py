"""Sampling: Algorithm 1's loop and the fast solvers, from a full or a truncated start.

All faces of a batch walk the same grid here, but each has its own noise: `noise(step)` returns the draw of every image for
that step, keyed by the image (`keyed_noise`), so that a face restored alone equals the same face in any batch.
State is float32. The solvers work on the paper's discrete schedule: a grid is a falling list of steps t.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffbfr.diffusion import p_mean_variance, predict_y_0, q_sample
from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import SamplerSpec

Epsilon = Callable[[Float[Tensor, "b 3 h w"], Int[Tensor, " b"]], Float[Tensor, "b 3 h w"]]
"""epsilon_theta(y_t, t), with the condition already bound."""
Noise = Callable[[int], Float[Tensor, "b 3 h w"]]
"""Standard normal noise of a step; step `start + 1` is the draw that diffuses the start (Eq. 2)."""


def keyed_noise(keys: Sequence[str], stage: str, px: int, device: torch.device | str = "cpu") -> Noise:
    """Noise that depends only on (key, stage, step): one generator per image and step, drawn on the CPU."""

    def draw(step: int) -> Float[Tensor, "b 3 h w"]:
        images = []
        for key in keys:
            seed = int.from_bytes(hashlib.sha256(f"{key}/{stage}/{step}".encode()).digest()[:8], "little") >> 1
            images.append(torch.randn(3, px, px, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(images).to(device)

    return draw


def start_from(y_0: Float[Tensor, "b 3 h w"] | None, start: int, schedule: NoiseSchedule, noise: Noise) -> Float[Tensor, "b 3 h w"]:
    """y_N of Algorithm 1: pure noise for a full start (y_0 is None), else y_0 diffused to step N by Eq. 2 (truncated)."""
    _check_start(start, schedule)
    first = noise(start + 1)
    if y_0 is None:
        return first
    return q_sample(y_0, _steps(start, y_0), schedule, first)


@torch.no_grad()
def p_sample_loop(
    epsilon: Epsilon, y_start: Float[Tensor, "b 3 h w"], start: int, schedule: NoiseSchedule, noise: Noise
) -> Float[Tensor, "b 3 h w"]:
    """Algorithm 1 verbatim: for t = N..1, the step of Eq. 4 with sigma_t = sqrt(1 - alpha_t), no noise at t = 1, no clamp."""
    _check_start(start, schedule)
    y_t = y_start
    for t in range(start, 0, -1):
        steps = _steps(t, y_t)
        step = p_mean_variance(y_t, steps, schedule, epsilon(y_t, steps))
        y_t = step.mean + step.sigma * noise(t) if t > 1 else step.mean
    return y_t


def log_snr_grid(schedule: NoiseSchedule, start: int, spec: SamplerSpec) -> list[int]:
    """Steps from `start` down, evenly spaced in log-SNR, the last at `end_half_log_snr`; strictly falling.

    Where steps lie wider apart than the spacing, neighbours are taken; as many evaluations as steps visit every step.
    """
    _check_start(start, schedule)
    if not 1 <= spec.num_evaluations <= start:
        raise UsageError(f"{spec.num_evaluations} evaluations from start={start}; expected 1..{start}")
    half_log_snr = schedule.half_log_snr[1:]
    first = float(half_log_snr[start - 1])
    wanted = torch.linspace(first, max(spec.end_half_log_snr, first), spec.num_evaluations, dtype=torch.float64)
    grid = [int((half_log_snr - value).abs().argmin()) + 1 for value in wanted]
    grid[0] = start
    for i in range(1, len(grid)):
        grid[i] = min(grid[i], grid[i - 1] - 1)
    return [max(t, len(grid) - i) for i, t in enumerate(grid)]


@torch.no_grad()
def solve(
    epsilon: Epsilon,
    y_start: Float[Tensor, "b 3 h w"],
    grid: Sequence[int],
    schedule: NoiseSchedule,
    spec: SamplerSpec,
    noise: Noise,
    *,
    clamp: bool = True,
) -> Float[Tensor, "b 3 h w"]:
    """Walk a grid with one of the fast solvers; the last evaluation jumps to y_0.

    `ddim` (Song et al. 2021), `dpmpp_2m` and its stochastic form `sde_dpmpp_2m` (Lu et al. 2022, second order, midpoint)
    and `ancestral`, the respaced reverse process. `clamp` keeps every prediction of y_0 in [-1, 1].
    """
    y, earlier, step_before = y_start, None, 0.0
    for i, t in enumerate(grid):
        steps = _steps(t, y)
        y_0 = predict_y_0(y, steps, schedule, epsilon(y, steps))
        if clamp:
            y_0 = y_0.clamp(-1, 1)
        if i == len(grid) - 1:
            return y_0
        after = grid[i + 1]
        h = float(schedule.half_log_snr[after] - schedule.half_log_snr[t])
        slope = torch.zeros_like(y_0) if earlier is None else (y_0 - earlier) * (h / step_before)
        y = _advance(y, y_0, slope, (t, after, h), schedule, spec, noise)
        earlier, step_before = y_0, h
    raise UsageError("the grid is empty; expected at least one step")


def _advance(
    y: Tensor, y_0: Tensor, slope: Tensor, move: tuple[int, int, float], schedule: NoiseSchedule, spec: SamplerSpec, noise: Noise
) -> Tensor:
    """One move of a solver from step t to `after`; h is the gain in half-log-SNR, slope the change of y_0 over h."""
    t, after, h = move
    sigma_t = math.sqrt(1 - float(schedule.gamma[t]))
    sigma, scale = math.sqrt(1 - float(schedule.gamma[after])), math.sqrt(float(schedule.gamma[after]))
    if spec.solver == "ddim":
        return sigma / sigma_t * y - scale * math.expm1(-h) * y_0
    if spec.solver == "dpmpp_2m":
        return sigma / sigma_t * y - scale * math.expm1(-h) * (y_0 + 0.5 * slope)
    if spec.solver == "sde_dpmpp_2m":
        drift = sigma / sigma_t * math.exp(-h) * y - scale * math.expm1(-2 * h) * (y_0 + 0.5 * slope)
        return drift + sigma * math.sqrt(-math.expm1(-2 * h)) * noise(t)
    alpha = float(schedule.gamma[t] / schedule.gamma[after])
    mean = (scale * (1 - alpha) * y_0 + math.sqrt(alpha) * sigma**2 * y) / sigma_t**2
    return mean + sigma / sigma_t * math.sqrt(1 - alpha) * noise(t)


def _check_start(start: int, schedule: NoiseSchedule) -> None:
    if not 1 <= start <= schedule.num_steps:
        raise UsageError(f"start={start}; expected a step in 1..{schedule.num_steps}")


def _steps(t: int, like: Tensor) -> Int[Tensor, " b"]:
    return torch.full((like.shape[0],), t, dtype=torch.long, device=like.device)
