"""Noise schedules: the tables beta, alpha, gamma of Eq. 1 and 2 for t = 0..T.

Row 0 is the clean image (beta_0 = 0, alpha_0 = gamma_0 = 1); the paper's steps are 1..T. What the paper calls
gamma is `alphas_cumprod` in most other code. Tables are float64; cast where they meet a network.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from diffbfr.stages import ScheduleSpec


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The tables of one schedule, each float64 of T + 1 rows, indexed by the paper's t."""

    spec: ScheduleSpec
    beta: Float64[Tensor, " rows"]

    @property
    def num_steps(self) -> int:
        """T, the last step."""
        return self.spec.num_steps

    @cached_property
    def alpha(self) -> Float64[Tensor, " rows"]:
        """alpha_t = 1 - beta_t (Eq. 1)."""
        return 1 - self.beta

    @cached_property
    def gamma(self) -> Float64[Tensor, " rows"]:
        """gamma_t = alpha_1 * ... * alpha_t (Eq. 2): the fraction of the image's power that is left at t."""
        return torch.cumprod(self.alpha, 0)

    @cached_property
    def half_log_snr(self) -> Float64[Tensor, " rows"]:
        """lambda_t = log(sqrt(gamma_t) / sqrt(1 - gamma_t)), the time of the fast solvers; +inf in row 0."""
        return 0.5 * (torch.log(self.gamma) - torch.log1p(-self.gamma))

    @cached_property
    def posterior_variance(self) -> Float64[Tensor, " rows"]:
        """Variance of q(y_{t-1} | y_t, y_0): (1 - gamma_{t-1}) / (1 - gamma_t) beta_t; 0 in rows 0 and 1."""
        variance = torch.zeros_like(self.beta)
        variance[1:] = (1 - self.gamma[:-1]) / (1 - self.gamma[1:]) * self.beta[1:]
        return variance


def noise_schedule(spec: ScheduleSpec) -> NoiseSchedule:
    """Tabulate a schedule, with the clean image as row 0."""
    steps = torch.linspace(spec.beta_1, spec.beta_T, spec.num_steps, dtype=torch.float64)
    return NoiseSchedule(spec, torch.cat([torch.zeros(1, dtype=torch.float64), steps]))
