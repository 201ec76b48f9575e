"""How few steps are enough, asked of Gaussian images whose denoiser is known in closed form: what is left is
the sampler's error.

Images are Gaussian and stationary, with a power spectrum of 1 / f^2 as natural images have. Their Fourier
modes are independent, each with its own variance, and white noise is white in them too; so a sampler is a
linear filter of every mode, and what it makes of the start and of the noise of each step can be read off
exactly, without drawing anything. Modes of one frequency band are treated as one.

The stages differ in what is known before. IRM-1 and IRM-2 see the image blurred and with a little noise: what
they restore is the rest, about the best guess from that (y_0 here is the difference to it), and a truncated
start begins at the guess. TEM sees nothing, and begins at an image that is too smooth. The error is how far
the deviation of a mode comes out wrong, root mean square over all modes, in 8-bit levels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffbfr.diffusion import p_mean_variance
from diffbfr.samplers import Epsilon, solve, start_from
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import IRM1, IRM2, TEM, ReverseVariance, SamplerSpec, Solver, StageSpec
from diffbfr.step_grid import step_grid

LEVEL = 1 / 127.5
"""One 8-bit level, of images in [-1, 1]."""
PIXEL_STD = 0.25
"""Deviation of a pixel."""
KNEE = 1.0
"""Frequency in cycles an image below which the spectrum is flat."""
BLUR_PX, NOISE_LEVELS = 10.0, 0.5
"""What the IRMs see: the strongest blur of Eq. 13 at 512 px, with noise of half a level."""
SMOOTH_PX = 2.0
"""Blur at 512 px of the image that TEM begins with."""
FULL_PX = 512


@dataclass(frozen=True)
class Modes:
    """Independent Gaussian modes of what a stage restores, (3, 1, bands); with each, the variance of the
    image that it begins with.
    """

    variance: Tensor
    start: Tensor
    share: Tensor
    """Of each band in all modes; sums to one."""

    def diffused_start(self, t: int, schedule: NoiseSchedule) -> Tensor:
        """Variance of y_t for a truncated start (Eq. 2)."""
        return schedule.gamma[t] * self.start + 1 - schedule.gamma[t]

    def error(self, variance: Tensor) -> float:
        """How far the deviations of the modes are off, in levels."""
        return float((self.share * (variance.sqrt() - self.variance.sqrt()).square()).sum().sqrt()) / LEVEL


def modes_of(stage: StageSpec) -> Modes:
    """What the stage restores."""
    frequency, share = _bands(stage.px)
    _, rest, start = _spectra(stage, frequency, share)
    return Modes(rest, start, share)


def _spectra(
    stage: StageSpec, frequency: Tensor, share: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Variances by frequency: of the best guess that the stage is given, of the rest about it, and of where
    the start lies about it.

    `share` is that of each frequency in all modes; None counts them as equal.
    """
    power = 1 / (frequency**2 + KNEE**2)
    power = power * PIXEL_STD**2 / (power.mean() if share is None else (share * power).sum())
    if not stage.conditional:
        return torch.zeros_like(power), power, power * _passed(frequency, SMOOTH_PX) ** 2
    noise = (NOISE_LEVELS * LEVEL) ** 2
    rest = power * noise / (_passed(frequency, BLUR_PX) ** 2 * power + noise)
    return (power - rest).clamp_min(0), rest, torch.zeros_like(rest)


def _passed(frequency: Tensor, blur_px: float) -> Tensor:
    """What a Gaussian blur (px at `FULL_PX`) leaves of the amplitude at a frequency in cycles an image."""
    return torch.exp(-0.5 * (2 * torch.pi * frequency * blur_px / FULL_PX) ** 2)


def _frequencies(px: int) -> Tensor:
    """Of every Fourier mode of a px x px image, in cycles an image."""
    line = torch.fft.fftfreq(px, dtype=torch.float64) * px
    return torch.hypot(line[:, None], line[None])


def _bands(px: int) -> tuple[Tensor, Tensor]:
    """Mean frequency and share of bands an eighth of an octave wide, of all px x px Fourier modes; padded
    to a multiple of three.
    """
    frequency = _frequencies(px).numpy().ravel()
    band = np.where(frequency > 0, np.floor(8 * np.log2(np.maximum(frequency, 1))) + 1, 0).astype(int)
    counts, sums = np.bincount(band), np.bincount(band, weights=frequency)
    mean, share = sums[counts > 0] / counts[counts > 0], counts[counts > 0] / counts.sum()
    padding = -len(mean) % 3
    mean, share = np.append(mean, [mean[-1]] * padding), np.append(share, [0.0] * padding)
    return torch.from_numpy(mean).view(3, 1, -1), torch.from_numpy(share).view(3, 1, -1)


def exact_epsilon(variance: Tensor, schedule: NoiseSchedule) -> Epsilon:
    """E[noise | y_t] of modes with these variances: y_t is Gaussian, and the noise its linear regression."""

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        gamma = schedule.gamma[t].view(-1, 1, 1, 1)
        return (1 - gamma).sqrt() * y_t / (gamma * variance + 1 - gamma)

    return epsilon


def after_algorithm_1(stage: StageSpec, modes: Modes, variance: ReverseVariance) -> Tensor:
    """Variance of the modes after the loop of Algorithm 1: its steps are Markov, so that variances follow
    each other.
    """
    schedule = noise_schedule(stage.schedule)
    steps = torch.arange(1, stage.start + 1)
    ones = torch.ones(len(steps), *modes.variance.shape, dtype=modes.variance.dtype)
    epsilon = exact_epsilon(modes.variance, schedule)(ones, steps)
    step = p_mean_variance(ones, steps, schedule, epsilon, variance=variance)  # of all steps at once
    kept, added = step.mean.square(), step.sigma.square()
    added[0] = 0.0  # no noise in the last step
    y = _start(stage, modes, schedule)
    for index in range(stage.start - 1, -1, -1):
        y = kept[index] * y + added[index]
    return y


def after_solver(stage: StageSpec, modes: Modes, sampler: SamplerSpec) -> Tensor:
    """Variance of the modes after a solver: squares of what it makes of the start and of each step's
    noise, each alone in a face.
    """
    schedule = noise_schedule(stage.schedule)
    grid = step_grid(schedule, stage.start, sampler)
    y = torch.zeros(len(grid) + 1, *modes.variance.shape, dtype=torch.float64)
    y[-1] = _start(stage, modes, schedule).sqrt()

    def noise(steps: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.full_like(modes.variance, float(t == own))
                for t, own in zip(steps.tolist(), [*grid, 0], strict=True)
            ]
        )

    responses = solve(
        exact_epsilon(modes.variance, schedule), y, [grid] * len(y), schedule, sampler, noise, clamp=False
    )
    return responses.square().sum(0)


def moved_by_clamp(stage: StageSpec, sampler: SamplerSpec, seed: int = 0) -> float:
    """How far the clamp of mode `fast` moves a picture from where the solver would leave it, root mean square
    over three, in levels.

    A clamp is no linear filter: pictures are drawn, and walked with and without it from the same noise. The
    same noise makes the difference the clamp's own, however few they are.
    """
    schedule, generator = noise_schedule(stage.schedule), torch.Generator().manual_seed(seed)
    frequency, white = _frequencies(stage.px), torch.Size((3, stage.px, stage.px))
    known, rest, start = _spectra(stage, frequency)

    def drawn(variance: Tensor) -> Tensor:
        return _filtered(torch.randn(white, generator=generator, dtype=torch.float64), variance.sqrt())[None]

    guess, grid = drawn(known), step_grid(schedule, stage.start, sampler)
    noises = {
        t: torch.randn(white, generator=generator, dtype=torch.float64)[None]
        for t in [*grid, stage.start + 1]
    }
    y_0 = None if stage.start == schedule.num_steps else guess + drawn(start)

    def epsilon(y_t: Tensor, t: Tensor) -> Tensor:
        gamma = schedule.gamma[t]
        return _filtered(y_t - gamma.sqrt() * guess, (1 - gamma).sqrt() / (gamma * rest + 1 - gamma))

    def walked(clamp: bool) -> Tensor:
        y_start = start_from(y_0, [stage.start], schedule, lambda steps: noises[int(steps)])
        return solve(
            epsilon, y_start, [grid], schedule, sampler, lambda steps: noises[int(steps)], clamp=clamp
        )

    return float((walked(True) - walked(False).clamp(-1, 1)).square().mean().sqrt()) / LEVEL


def _filtered(image: Tensor, gain: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(image) * gain).real


def _start(stage: StageSpec, modes: Modes, schedule: NoiseSchedule) -> Tensor:
    if stage.start == schedule.num_steps:
        return torch.ones_like(modes.variance)
    return modes.diffused_start(stage.start, schedule)


@dataclass(frozen=True)
class Row:
    """One line of the study; errors in 8-bit levels."""

    name: str
    stage: StageSpec
    algorithm_1: float
    """With sigma_t^2 = 1 - alpha_t."""
    posterior: float
    """The same loop with the posterior's variance."""
    sampler: SamplerSpec
    few: dict[Solver, float]
    """Error of each solver in as many evaluations."""


SHALLOW = replace(IRM2, start=600, fast=replace(IRM2.fast, solver="sde_dpmpp_2m"))
"""IRM-2 from the N_1 that Table 3 prefers."""
SOLVERS: tuple[Solver, ...] = ("dpmpp_2m", "sde_dpmpp_2m", "ddim", "ancestral")


def study(budget: Sequence[int] = (20, 10, 8), end_half_log_snr: float = 4.0) -> list[Row]:
    """Measure the stages of Table 6, and IRM-2 from N_1 = 600 too, with so many evaluations for IRM-1,
    IRM-2 and TEM.
    """
    irm1, irm2, tem = budget
    rows = []
    for name, stage, count in (
        ("IRM-1, from noise", IRM1, irm1),
        ("IRM-2, N_1 = 1000", IRM2, irm2),
        ("IRM-2, N_1 = 600", SHALLOW, irm2),
        ("TEM, N_2 = 100", TEM, tem),
    ):
        modes = modes_of(stage)
        sampler = SamplerSpec(stage.fast.solver, count, end_half_log_snr)
        few = {
            solver: modes.error(after_solver(stage, modes, replace(sampler, solver=solver)))
            for solver in SOLVERS
        }
        rows.append(
            Row(name, stage, _loop_error(stage, "beta"), _loop_error(stage, "posterior"), sampler, few)
        )
    return rows


@functools.cache
def _loop_error(stage: StageSpec, variance: ReverseVariance) -> float:
    modes = modes_of(stage)
    return modes.error(after_algorithm_1(stage, modes, variance))
