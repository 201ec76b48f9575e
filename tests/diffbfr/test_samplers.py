"""Samplers against an independent float64 loop and a denoiser known in closed form; `test_solvers.py` has
diffusers' schedulers.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.samplers import keyed_noise, p_sample_loop, solve, start_from
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import (
    IRM1,
    IRM2,
    SR3_SCHEDULE,
    TEM,
    TEM_SCHEDULE,
    SamplerSpec,
    ScheduleSpec,
    Solver,
    StageSpec,
)
from diffbfr.step_grid import step_grid

SR3, DDPM = noise_schedule(SR3_SCHEDULE), noise_schedule(TEM_SCHEDULE)
KEYS = ("a/0", "b/0")
STAGES = pytest.mark.parametrize("stage", [IRM1, IRM2, TEM], ids=lambda stage: stage.name)


def _toy_epsilon(y_t: Tensor, t: Tensor) -> Tensor:
    """A fixed function that no solver has an interest in."""
    return 0.8 * torch.tanh(y_t) + 0.1 * torch.sin(t.to(y_t.dtype) / 50).view(-1, 1, 1, 1)


def _drawn(step: int) -> Tensor:
    """Noise of two images at one step."""
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def _noise64(steps: Tensor) -> Tensor:
    return torch.stack([_drawn(step)[i] for i, step in enumerate(steps.tolist())])


def _both(grid: list[int]) -> list[list[int]]:
    return [grid, grid]


def _start(seed: int = 9) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Noise


def test_noise_of_one_image_alone_is_that_of_the_image_in_a_batch() -> None:
    together = keyed_noise(KEYS, "irm1", 8)(torch.tensor([7, 9]))
    for i, (key, step) in enumerate(zip(KEYS, (7, 9), strict=True)):
        assert torch.equal(keyed_noise([key], "irm1", 8)(torch.tensor([step]))[0], together[i])


def test_noise_differs_by_key_stage_and_step_and_by_nothing_else() -> None:
    draws = {
        (key, stage, step): keyed_noise([key], stage, 8)(torch.tensor([step]))
        for key in ("a/0", "a/1")
        for stage in ("irm1", "irm2")
        for step in (1, 2)
    }
    assert len({tuple(draw.flatten().tolist()) for draw in draws.values()}) == len(draws)
    later = keyed_noise(["a/1"], "irm2", 8)
    later(torch.tensor([5]))
    assert torch.equal(later(torch.tensor([2])), draws["a/1", "irm2", 2])


def test_step_zero_asks_for_no_noise() -> None:
    assert keyed_noise(KEYS, "tem", 8)(torch.tensor([0, 3])).abs().flatten(1).amax(1).gt(0).tolist() == [
        False,
        True,
    ]


def test_noise_drawn_in_threads_is_bitwise_the_same_as_in_one_call_after_the_other() -> None:
    keys, steps = [str(i) for i in range(9)], torch.tensor([3, 0, 7, 7, 1, 2, 900, 4, 5])
    serial = []
    for key, step in zip(keys, steps.tolist(), strict=True):
        seed = int.from_bytes(hashlib.sha256(f"{key}/tem/{step}".encode()).digest()[:8], "little") >> 1
        serial.append(
            torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed))
            if step
            else torch.zeros(3, 24, 24)
        )
    for threads in (None, 1, 4):
        assert torch.equal(keyed_noise(keys, "tem", 24, threads=threads)(steps), torch.stack(serial))


def test_noise_is_standard_normal() -> None:
    draw = keyed_noise([str(i) for i in range(32)], "tem", 32)(torch.ones(32, dtype=torch.long)).double()
    n = draw.numel()
    assert abs(float(draw.mean())) < 4 / math.sqrt(n)
    assert abs(float(draw.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((draw**4).mean()) - 3) < 4 * math.sqrt(96 / n)


# Starts


def test_a_full_start_is_pure_noise_and_a_truncated_one_is_the_diffused_image() -> None:
    assert torch.equal(start_from(None, [2000, 2000], SR3, _noise64), _drawn(2001))
    image, found = _start(), start_from(_start(), [1000, 600], SR3, _noise64)
    for i, start in enumerate((1000, 600)):
        gamma = math.prod((1 - SR3.beta[1 : start + 1]).tolist())
        expected = math.sqrt(gamma) * image[i] + math.sqrt(1 - gamma) * _drawn(start + 1)[i]
        assert torch.allclose(found[i], expected, atol=1e-12)


@pytest.mark.parametrize("start", [-1, 0, 1001])
def test_a_start_outside_the_schedule_is_refused(start: int) -> None:
    expected = pytest.raises(UsageError, match=rf"start={start}; expected a step in 1\.\.1000")
    with expected:
        start_from(_start(), [100, start], DDPM, _noise64)
    with expected:
        p_sample_loop(_toy_epsilon, _start(), [100, start], DDPM, _noise64)
    with expected:
        step_grid(DDPM, start, TEM.fast)
    with expected:
        solve(_toy_epsilon, _start(), [[100], [start]], DDPM, TEM.fast, _noise64)


# Algorithm 1


def _algorithm_1(y: Tensor, start: int, spec: ScheduleSpec) -> list[Tensor]:
    """Lines 2 to 5 of Algorithm 1, written from the page in numpy: every x'_t from N down to 0."""
    beta = np.linspace(spec.beta_1, spec.beta_T, spec.num_steps)
    states = [y.numpy()]
    for t in range(start, 0, -1):
        alpha, gamma = 1 - beta[t - 1], np.prod(1 - beta[:t])
        estimate = 0.8 * np.tanh(states[-1]) + 0.1 * np.sin(t / 50)
        drawn = _drawn(t).numpy() if t > 1 else 0.0
        states.append(
            (states[-1] - (1 - alpha) / np.sqrt(1 - gamma) * estimate) / np.sqrt(alpha)
            + np.sqrt(1 - alpha) * drawn
        )
    return [torch.from_numpy(state) for state in states]


@pytest.mark.parametrize(("spec", "start"), [(SR3_SCHEDULE, 300), (TEM_SCHEDULE, 100), (TEM_SCHEDULE, 1)])
def test_every_step_is_that_of_algorithm_1(spec: ScheduleSpec, start: int) -> None:
    seen: list[Tensor] = []

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        assert t.tolist() == [start - len(seen)] * 2
        seen.append(y_t)
        return _toy_epsilon(y_t, t)

    result = p_sample_loop(epsilon, _start(), [start, start], noise_schedule(spec), _noise64)
    expected = _algorithm_1(_start(), start, spec)
    assert len(seen) == start
    for found, state in zip([*seen, result], expected, strict=True):
        assert torch.allclose(found, state, rtol=1e-9, atol=1e-9)


def test_algorithm_1_in_float32_stays_near_float64() -> None:
    result = p_sample_loop(
        _toy_epsilon, _start().float(), [300, 300], SR3, lambda steps: _noise64(steps).float()
    )
    assert torch.allclose(result.double(), _algorithm_1(_start(), 300, SR3_SCHEDULE)[-1], atol=1e-4)


def test_no_noise_is_asked_for_at_the_last_step() -> None:
    asked: list[int] = []

    def noise(steps: Tensor) -> Tensor:
        asked.extend(steps.tolist())
        return _noise64(steps)

    p_sample_loop(_toy_epsilon, _start(), [20, 20], DDPM, noise)
    assert asked == [step for step in range(20, 1, -1) for _ in range(2)]


def test_the_reverse_variance_and_clamp_of_sr3_are_options() -> None:
    beta = np.linspace(TEM_SCHEDULE.beta_1, TEM_SCHEDULE.beta_T, TEM_SCHEDULE.num_steps)
    gamma = np.concatenate([[1.0], np.cumprod(1 - beta)])
    y = 2 * _start().numpy()
    for t in range(40, 0, -1):
        estimate = 0.8 * np.tanh(y) + 0.1 * np.sin(t / 50)
        y_0 = np.clip((y - np.sqrt(1 - gamma[t]) * estimate) / np.sqrt(gamma[t]), -1, 1)
        share = beta[t - 1] / (1 - gamma[t])
        mean = (
            np.sqrt(gamma[t - 1]) * share * y_0
            + np.sqrt(1 - beta[t - 1]) * (1 - gamma[t - 1]) / (1 - gamma[t]) * y
        )
        y = mean + np.sqrt((1 - gamma[t - 1]) * share) * (_drawn(t).numpy() if t > 1 else 0.0)
    found = p_sample_loop(
        _toy_epsilon, 2 * _start(), [40, 40], DDPM, _noise64, variance="posterior", clamp=True
    )
    assert torch.allclose(found, torch.from_numpy(y), atol=1e-9)


def test_the_learned_variance_of_tem_is_an_option() -> None:
    """A geometric mean of the two variances, pixel by pixel (Nichol & Dhariwal 2021, Eq. 15), with the
    range beside the noise.
    """
    beta = np.linspace(TEM_SCHEDULE.beta_1, TEM_SCHEDULE.beta_T, TEM_SCHEDULE.num_steps)
    gamma = np.concatenate([[1.0], np.cumprod(1 - beta)])
    y = _start().numpy()
    for t in range(40, 0, -1):
        estimate, share = 0.8 * np.tanh(y) + 0.1 * np.sin(t / 50), (np.sin(5 * y) + 1) / 2
        small = beta[max(t, 2) - 1] * (1 - gamma[max(t, 2) - 1]) / (1 - gamma[max(t, 2)])
        sigma = np.sqrt(beta[t - 1] ** share * small ** (1 - share))
        mean = (y - beta[t - 1] / np.sqrt(1 - gamma[t]) * estimate) / np.sqrt(1 - beta[t - 1])
        y = mean + sigma * (_drawn(t).numpy() if t > 1 else 0.0)

    def with_range(y_t: Tensor, t: Tensor) -> Tensor:
        return torch.cat([_toy_epsilon(y_t, t), torch.sin(5 * y_t)], 1)

    found = p_sample_loop(with_range, _start(), [40, 40], DDPM, _noise64, variance="learned")
    assert torch.allclose(found, torch.from_numpy(y), atol=1e-9)
    assert torch.equal(p_sample_loop(with_range, _start(), [40, 40], DDPM, _noise64), _walked(40))
    with pytest.raises(UsageError, match="the network gives no range"):
        p_sample_loop(_toy_epsilon, _start(), [40, 40], DDPM, _noise64, variance="learned")


def _walked(start: int) -> Tensor:
    return p_sample_loop(_toy_epsilon, _start(), [start, start], DDPM, _noise64)


# Faces at different steps


def _one(i: int) -> Callable[[Tensor], Tensor]:
    """Noise of the image i alone."""
    return lambda steps: torch.stack([_drawn(step)[i] for step in steps.tolist()])


@pytest.mark.parametrize("clamp", [False, True])
def test_faces_that_start_at_different_steps_walk_as_each_would_alone(clamp: bool) -> None:
    starts = [30, 7]
    together = p_sample_loop(_toy_epsilon, _start(), starts, DDPM, _noise64, clamp=clamp)
    for i, start in enumerate(starts):
        assert torch.equal(
            together[i],
            p_sample_loop(_toy_epsilon, _start()[i : i + 1], [start], DDPM, _one(i), clamp=clamp)[0],
        )


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m"])
def test_faces_on_different_grids_walk_as_each_would_alone(solver: Solver) -> None:
    spec = SamplerSpec(solver, 6)
    grids = [step_grid(DDPM, 400, spec), step_grid(DDPM, 100, replace(spec, num_evaluations=3))]
    together = solve(_toy_epsilon, _start(), grids, DDPM, spec, _noise64)
    for i, grid in enumerate(grids):
        assert torch.equal(
            together[i], solve(_toy_epsilon, _start()[i : i + 1], [grid], DDPM, spec, _one(i))[0]
        )


def test_a_start_for_some_faces_only_is_refused() -> None:
    with pytest.raises(UsageError, match="1 starts for 2 faces; expected one each"):
        p_sample_loop(_toy_epsilon, _start(), [20], DDPM, _noise64)
    with pytest.raises(UsageError, match="1 starts for 2 faces; expected one each"):
        solve(_toy_epsilon, _start(), [[20]], DDPM, TEM.fast, _noise64)


# Grids


@STAGES
@pytest.mark.parametrize("num_evaluations", [1, 2, 8, 20, 60, 100])
def test_a_grid_falls_strictly_from_the_start(stage: StageSpec, num_evaluations: int) -> None:
    schedule = noise_schedule(stage.schedule)
    grid = step_grid(schedule, stage.start, replace(stage.fast, num_evaluations=num_evaluations))
    assert grid[0] == stage.start
    assert len(grid) == num_evaluations
    assert all(after < before for before, after in pairwise(grid))
    assert grid[-1] >= 1


@STAGES
def test_a_grid_is_even_in_log_snr_and_ends_where_the_sampler_says(stage: StageSpec) -> None:
    schedule = noise_schedule(stage.schedule)
    grid = step_grid(schedule, stage.start, stage.fast)
    values = schedule.half_log_snr
    ideal = torch.linspace(float(values[stage.start]), stage.fast.end_half_log_snr, len(grid)).tolist()
    for t, value in zip(grid[1:], ideal[1:], strict=True):
        assert float(values[t + 1]) < value < float(values[t - 1])


@STAGES
def test_a_grid_even_in_t_ends_where_the_other_does(stage: StageSpec) -> None:
    schedule, spec = noise_schedule(stage.schedule), replace(stage.fast, grid="t")
    grid, last = step_grid(schedule, stage.start, spec), step_grid(schedule, stage.start, stage.fast)[-1]
    assert (grid[0], grid[-1]) == (stage.start, last)
    gaps = [before - after for before, after in pairwise(grid)]
    assert max(gaps) - min(gaps) <= 1
    assert step_grid(schedule, 30, replace(spec, num_evaluations=30)) == list(range(30, 0, -1))


def test_as_many_evaluations_as_steps_visit_every_step_and_more_are_refused() -> None:
    assert step_grid(DDPM, 30, SamplerSpec("ddim", 30)) == list(range(30, 0, -1))
    with pytest.raises(UsageError, match="31 evaluations from start=30"):
        step_grid(DDPM, 30, SamplerSpec("ddim", 31))
    with pytest.raises(UsageError, match="0 evaluations from start=30"):
        step_grid(DDPM, 30, SamplerSpec("ddim", 0))


# A denoiser in closed form: images whose pixels are independent Gaussians

MEAN, SIGMA = 0.2, 0.3


def _gaussian_epsilon(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """E[noise | y_t] where y_0 ~ N(MEAN, SIGMA^2): y_t is Gaussian too, and the noise is its linear
    regression.
    """

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        gamma = schedule.gamma[t].view(-1, 1, 1, 1).to(y_t.dtype)
        return (1 - gamma).sqrt() * (y_t - gamma.sqrt() * MEAN) / (gamma * SIGMA**2 + 1 - gamma)

    return epsilon


def _assert_recovered(images: Tensor, sigma_tolerance: float) -> None:
    n = images.numel()
    assert float(images.mean()) == pytest.approx(MEAN, abs=5 * SIGMA / math.sqrt(n) + 1e-3)
    assert float(images.std()) == pytest.approx(SIGMA, rel=5 / math.sqrt(2 * n) + sigma_tolerance)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m"])
def test_from_pure_noise_each_solver_finds_the_distribution_of_the_images(solver: Solver) -> None:
    spec = SamplerSpec(solver, 20 if solver.endswith("2m") else 200)
    noise = keyed_noise([str(i) for i in range(8)], "irm1", 32)
    start = start_from(None, [2000] * 8, SR3, noise)
    _assert_recovered(
        solve(_gaussian_epsilon(SR3), start, [step_grid(SR3, 2000, spec)] * 8, SR3, spec, noise, clamp=False),
        0.02,
    )


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m"])
def test_from_a_truncated_start_each_solver_keeps_the_distribution_of_the_images(solver: Solver) -> None:
    spec = SamplerSpec(solver, 10 if solver.endswith("2m") else 100)
    noise = keyed_noise([str(i) for i in range(8)], "tem", 32)
    images = MEAN + SIGMA * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    start = start_from(images, [100] * 8, DDPM, noise)
    _assert_recovered(
        solve(
            _gaussian_epsilon(DDPM), start, [step_grid(DDPM, 100, spec)] * 8, DDPM, spec, noise, clamp=False
        ),
        0.02,
    )


@pytest.mark.slow
def test_algorithm_1_finds_the_distribution_of_the_images() -> None:
    noise = keyed_noise([str(i) for i in range(2)], "tem", 32)
    start = start_from(None, [1000] * 2, DDPM, noise)
    _assert_recovered(p_sample_loop(_gaussian_epsilon(DDPM), start, [1000] * 2, DDPM, noise), 0.02)


# Ends


def test_clamping_keeps_every_prediction_within_the_pixels_range() -> None:
    spec = SamplerSpec("dpmpp_2m", 10)
    grid = step_grid(DDPM, 1000, spec)
    free = solve(_toy_epsilon, 3 * _start(), _both(grid), DDPM, spec, _noise64, clamp=False)
    clamped = solve(_toy_epsilon, 3 * _start(), _both(grid), DDPM, spec, _noise64)
    assert float(free.abs().max()) > 1
    assert float(clamped.abs().max()) <= 1


def test_one_evaluation_jumps_to_the_predicted_image() -> None:
    y = _start()
    gamma = float(DDPM.gamma[100])
    expected = (y - math.sqrt(1 - gamma) * _toy_epsilon(y, torch.tensor([100, 100]))) / math.sqrt(gamma)
    assert torch.allclose(
        solve(_toy_epsilon, y, [[100], [100]], DDPM, SamplerSpec("ddim", 1), _noise64, clamp=False),
        expected,
        atol=1e-12,
    )


def test_a_grid_that_is_empty_or_does_not_fall_is_refused() -> None:
    with pytest.raises(UsageError, match="grid is empty"):
        solve(_toy_epsilon, _start(), [[20], []], DDPM, TEM.fast, _noise64)
    with pytest.raises(UsageError, match=r"the grid \[20, 20\] does not fall"):
        solve(_toy_epsilon, _start(), [[20], [20, 20]], DDPM, TEM.fast, _noise64)
