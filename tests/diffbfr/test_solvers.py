"""Every solver against diffusers' scheduler of its name, on both schedules, from full and truncated starts,
over both kinds of grid.

Step i there is i + 1 here. Their tables are put in float64: in float32 1 - gamma is lost near the image. The
denoiser is that of Gaussian pixels, so that every prediction of the image is a picture, and the agreement is
absolute.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from diffbfr.samplers import solve, start_from
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import SR3_SCHEDULE, TEM_SCHEDULE, SamplerSpec, ScheduleSpec, Solver
from diffbfr.step_grid import step_grid

MEAN, SPREAD = 0.3, 0.3
COUNT = 10
Step = Callable[[Tensor, int, int, Tensor], Tensor]
"""epsilon, t and the t after it (there: -1 for the image), y_t -> the next y."""


def _drawn(step: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def _noise(steps: Tensor) -> Tensor:
    return torch.stack([_drawn(step)[i] for i, step in enumerate(steps.tolist())])


def _epsilon(schedule: NoiseSchedule, mean: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[noise | y_t]."""

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        gamma = schedule.gamma[t].view(-1, 1, 1, 1)
        return (1 - gamma).sqrt() * (y_t - gamma.sqrt() * mean) / (gamma * SPREAD**2 + 1 - gamma)

    return epsilon


def _ddim(schedule: NoiseSchedule, clamp: bool) -> Step:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.num_steps, clip_sample=clamp, set_alpha_to_one=True
    )
    scheduler.alphas_cumprod = schedule.gamma[1:]

    def step(epsilon: Tensor, t: int, after: int, y: Tensor) -> Tensor:
        scheduler.register_to_config(
            num_train_timesteps=t - after
        )  # it goes on by this much in a walk of one step
        scheduler.num_inference_steps = 1
        return scheduler.step(epsilon, t, y, use_clipped_model_output=clamp).prev_sample

    return step


def _ancestral(schedule: NoiseSchedule, grid: list[int], clamp: bool, variance: str) -> Step:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=schedule.num_steps, clip_sample=clamp, variance_type=variance
    )
    scheduler.alphas_cumprod = schedule.gamma[1:]
    scheduler.set_timesteps(timesteps=[t - 1 for t in grid])

    def step(epsilon: Tensor, t: int, after: int, y: Tensor) -> Tensor:
        made = scheduler.step(epsilon, t, y, generator=torch.Generator().manual_seed(t + 1))
        return made.prev_sample if after >= 0 else made.pred_original_sample

    return step


def _dpm_solver(schedule: NoiseSchedule, grid: list[int], clamp: bool, algorithm: str) -> Step:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.num_steps,
        trained_betas=schedule.beta[1:].numpy(),
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=[t - 1 for t in grid])
    gamma = schedule.gamma[grid]
    scheduler.sigmas = torch.cat([((1 - gamma) / gamma).sqrt(), torch.zeros(1, dtype=torch.float64)])
    if clamp:  # it has no such option: y_0 is clamped where it makes one
        to_y_0 = scheduler.convert_model_output
        scheduler.convert_model_output = lambda *given, **named: to_y_0(*given, **named).clamp(-1, 1)

    def step(epsilon: Tensor, t: int, after: int, y: Tensor) -> Tensor:
        return scheduler.step(epsilon, t, y, variance_noise=_drawn(t + 1)).prev_sample.double()

    return step


def _peer(spec: SamplerSpec, schedule: NoiseSchedule, grid: list[int], clamp: bool) -> Step:
    if spec.solver == "ddim":
        return _ddim(schedule, clamp)
    if spec.solver == "ancestral":
        return _ancestral(
            schedule,
            grid,
            clamp,
            {"posterior": "fixed_small", "beta": "fixed_large"}[spec.ancestral_variance],
        )
    return _dpm_solver(
        schedule, grid, clamp, {"dpmpp_2m": "dpmsolver++", "sde_dpmpp_2m": "sde-dpmsolver++"}[spec.solver]
    )


def _both_ways(
    spec: SamplerSpec, of: ScheduleSpec, start: int, *, clamp: bool = False, mean: float = MEAN
) -> tuple[Tensor, Tensor]:
    """What `solve` makes and what diffusers makes, from the same noise."""
    schedule = noise_schedule(of)
    grid, epsilon = step_grid(schedule, start, spec), _epsilon(schedule, mean)
    image = None if start == of.num_steps else (mean + SPREAD * _drawn(0)).clamp(-1, 1)
    y = first = start_from(image, [start, start], schedule, _noise)
    step = _peer(spec, schedule, grid, clamp)
    for t, after in pairwise([*grid, 0]):
        y = step(epsilon(y, torch.tensor([t, t])), t - 1, after - 1, y)
    return solve(epsilon, first, [grid, grid], schedule, spec, _noise, clamp=clamp), y


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("grid", ["log_snr", "t"])
@pytest.mark.parametrize(
    ("of", "start"), [(SR3_SCHEDULE, 2000), (SR3_SCHEDULE, 1000), (TEM_SCHEDULE, 1000), (TEM_SCHEDULE, 100)]
)
@pytest.mark.parametrize("solver", get_args(Solver))
def test_each_solver_is_diffusers_scheduler_of_its_name(
    solver: Solver, of: ScheduleSpec, start: int, grid: Literal["log_snr", "t"]
) -> None:
    found, expected = _both_ways(SamplerSpec(solver, COUNT, grid=grid), of, start)
    assert float((found - expected).abs().max()) < 1e-5
    assert float(found.std()) > 0.1
    assert float(found.abs().max()) < 1.5


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("start", [1000, 100])
@pytest.mark.parametrize("solver", get_args(Solver))
def test_the_clamp_is_diffusers_clip_sample(solver: Solver, start: int) -> None:
    spec = SamplerSpec(solver, COUNT)
    found, expected = _both_ways(spec, TEM_SCHEDULE, start, clamp=True, mean=0.8)
    assert float((found - expected).abs().max()) < 1e-5
    free, _ = _both_ways(spec, TEM_SCHEDULE, start, mean=0.8)
    assert float(free.abs().max()) > 1 >= float(found.abs().max())


@pytest.mark.parametrize(("of", "start"), [(SR3_SCHEDULE, 2000), (TEM_SCHEDULE, 100)])
def test_ancestral_with_algorithm_1s_variance_is_diffusers_ddpm_with_the_large_one(
    of: ScheduleSpec, start: int
) -> None:
    spec = SamplerSpec("ancestral", COUNT, ancestral_variance="beta")
    found, expected = _both_ways(spec, of, start)
    assert float((found - expected).abs().max()) < 1e-5
    other, _ = _both_ways(replace(spec, ancestral_variance="posterior"), of, start)
    assert float((found - other).abs().max()) > 1e-2
