"""The diffusion process: forward draws (Eq. 2), the reverse step (Eq. 3-5) and the losses (Eq. 8, 9, 11).

Every function takes one step per image, `t` of shape (b,), so that a batch can hold faces at different steps,
and takes its noise from the caller. Images are float tensors (b, c, h, w) in [-1, 1]. A network's output
holds the noise estimate in its first c channels and, for TEM (Table 6: 6 output channels), the learned
variance range in the next c.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import LossKind, ReverseVariance

VLB_WEIGHT = 0.001
"""Weight of the variational term of the hybrid loss (Nichol & Dhariwal 2021, section 4: lambda = 0.001)."""


def _at(table: Float64[Tensor, " rows"], t: Int[Tensor, " b"], like: Tensor) -> Tensor:
    """Rows `t` of a table as (b, 1, 1, 1), in the dtype and on the device of `like`."""
    rows = t.cpu()
    if bool(((rows < 0) | (rows >= len(table))).any()):
        raise UsageError(f"t={rows.tolist()}; expected steps in 0..{len(table) - 1}")
    return table[rows].to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)


def q_sample(
    y_0: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Draw y_t ~ q(y_t | y_0) = N(sqrt(gamma_t) y_0, (1 - gamma_t) I), Eq. 2, from the given noise."""
    return _at(schedule.gamma.sqrt(), t, y_0) * y_0 + _at((1 - schedule.gamma).sqrt(), t, y_0) * noise


def predict_y_0(
    y_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    epsilon: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Solve Eq. 2 for y_0, given the estimated noise in y_t."""
    return (y_t - _at((1 - schedule.gamma).sqrt(), t, y_t) * epsilon) / _at(schedule.gamma.sqrt(), t, y_t)


def posterior_mean(
    y_0: Float[Tensor, "b c h w"],
    y_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "b c h w"]:
    """Mean of q(y_{t-1} | y_t, y_0), by Bayes' rule from Eq. 1 and 2 (Ho et al. 2020, Eq. 7)."""
    gamma, alpha, beta = schedule.gamma, schedule.alpha, schedule.beta
    before = torch.cat([gamma[:1], gamma[:-1]])
    denominator = (1 - gamma).clamp_min(torch.finfo(torch.float64).tiny)
    return (
        _at(before.sqrt() * beta / denominator, t, y_t) * y_0
        + _at(alpha.sqrt() * (1 - before) / denominator, t, y_t) * y_t
    )


def ddim_step(
    y_t: Float[Tensor, "b c h w"],
    y_0: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    after: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "b c h w"]:
    """Move from step t to the lower step `after` without new noise (Song et al. 2021, Eq. 12 at sigma = 0).

    y_s = sqrt(gamma_s) y_0 + (sigma_s / sigma_t) (y_t - sqrt(gamma_t) y_0), where sigma^2 = 1 - gamma. At
    step 0 the result is `y_0`, the predicted image.
    """
    own, kept = _ddim_coefficients(t, after, schedule)
    return _column(own, y_t) * y_0 + _column(kept, y_t) * y_t


def ddim_origin(
    y_t: Float[Tensor, "b c h w"],
    y_s: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    after: Int[Tensor, " b"],
    schedule: NoiseSchedule,
) -> Float[Tensor, "b c h w"]:
    """The y_0 from which one `ddim_step` leads from y_t to y_s (Salimans & Ho 2022, Algorithm 2)."""
    own, kept = _ddim_coefficients(t, after, schedule)
    return (y_s - _column(kept, y_t) * y_t) / _column(own, y_t)


def _ddim_coefficients(
    t: Int[Tensor, " b"], after: Int[Tensor, " b"], schedule: NoiseSchedule
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Coefficients of y_0 and of y_t in y_s."""
    if bool(((after < 0) | (after >= t)).any()):
        raise UsageError(f"steps {t.tolist()} to {after.tolist()}; expected each to lead to a lower one")
    level, sigma = schedule.gamma.sqrt(), (1 - schedule.gamma).sqrt()
    now, then = t.cpu(), after.cpu()
    kept = sigma[then] / sigma[now]
    return level[then] - kept * level[now], kept


def _column(values: Float64[Tensor, " b"], like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    return values.to(device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class ReverseStep:
    """p(y_{t-1} | y_t), Eq. 3: the mean and the standard deviation of one reverse step."""

    mean: Float[Tensor, "b c h w"]
    sigma: Float[Tensor, "b #c #h #w"]
    """One per image, or one per pixel where it is learned."""


def p_mean_variance(
    y_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    epsilon: Float[Tensor, "b c h w"],
    *,
    variance: ReverseVariance = "beta",
    variance_range: Float[Tensor, "b c h w"] | None = None,
    clamp: bool = False,
) -> ReverseStep:
    """Mean and deviation of the reverse step (Eq. 4; with a condition Eq. 5).

    `variance="beta"` without clamp is Algorithm 1: sigma_t^2 = 1 - alpha_t. `variance="posterior"` with
    `clamp` is SR3's code: y_0 clamped to [-1, 1] and the variance of q(y_{t-1} | y_t, y_0).
    `variance="learned"` reads it from the `variance_range` that the network gives beside the noise
    (`learned_log_variance`).
    """
    if clamp:
        mean = posterior_mean(predict_y_0(y_t, t, schedule, epsilon).clamp(-1, 1), y_t, t, schedule)
    else:
        ratio = (1 - schedule.alpha) / (1 - schedule.gamma).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        mean = (y_t - _at(ratio, t, y_t) * epsilon) / _at(schedule.alpha.sqrt(), t, y_t)
    if variance == "learned":
        if variance_range is None:
            raise UsageError(
                "the variance is to be a learned one and the network gives no range; expected one; take beta "
                "or posterior"
            )
        return ReverseStep(mean, torch.exp(0.5 * learned_log_variance(variance_range, t, schedule)))
    table = schedule.beta if variance == "beta" else schedule.posterior_variance
    return ReverseStep(mean, _at(table.sqrt(), t, y_t))


def learned_log_variance(
    variance_range: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], schedule: NoiseSchedule
) -> Float[Tensor, "b c h w"]:
    """Read a network's range as log sigma_t^2 = v log beta_t + (1 - v) log posterior variance.

    v = (range + 1) / 2 (Nichol & Dhariwal 2021, Eq. 15). At t = 1 the posterior has no variance; that of t =
    2 stands for it.
    """
    share = (variance_range + 1) / 2
    high = _at(torch.log(schedule.beta.clamp_min(torch.finfo(torch.float64).tiny)), t, variance_range)
    return share * high + (1 - share) * _at(_posterior_log_variance(schedule), t, variance_range)


def _posterior_log_variance(schedule: NoiseSchedule) -> Float64[Tensor, " rows"]:
    """log of the posterior's variance, with that of t = 2 in the rows before it."""
    return torch.log(torch.cat([schedule.posterior_variance[2:3]] * 2 + [schedule.posterior_variance[2:]]))


def velocity(
    y_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], level: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """sqrt(gamma) noise - sqrt(1 - gamma) y_0, for level = sqrt(gamma) (Salimans & Ho 2022, section 4).

    Near t = 1 a level in float32 has lost 1 - gamma; give it in float64, the result has the dtype of the
    images.
    """
    return level.to(y_0.dtype) * noise - (1 - level.square()).sqrt().to(y_0.dtype) * y_0


def noise_of_velocity(
    v: Float[Tensor, "b c h w"], y_t: Float[Tensor, "b c h w"], level: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """Recover the noise from a velocity and y_t: sqrt(gamma) v + sqrt(1 - gamma) y_t."""
    return level.to(v.dtype) * v + (1 - level.square()).sqrt().to(v.dtype) * y_t


def noise_loss(
    epsilon: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    kind: LossKind,
    valid: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Distance of the estimated noise from the drawn one, a mean per image.

    Pixels outside of `valid` count as zero in that mean, so that each valid pixel of a batch weighs the same.
    Eq. 8, 9 and 11 print the squared L2 norm, Table 6 says L1; the default of every stage is L1
    (`loss="l1"`).
    """
    distance = (epsilon - noise).abs() if kind == "l1" else (epsilon - noise).square()
    return _image_mean(distance, valid)


def variational_loss(
    variance_range: Float[Tensor, "b c h w"],
    y_0: Float[Tensor, "b c h w"],
    y_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: NoiseSchedule,
    epsilon: Float[Tensor, "b c h w"],
    valid: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, " b"]:
    """The term of the evidence lower bound at t, in bits per dimension: trains the learned range of TEM.

    The mean is Eq. 4's, detached: only the variance learns from this term (`learned_log_variance`). It learns
    the error of the unclamped mean, which is the one that Algorithm 1 uses (guided diffusion trains in the
    same way, and clamps in sampling alone). At t = 1 the term is the discretised likelihood of the 8-bit
    image (Ho et al. 2020, Eq. 13), else the divergence of two Gaussians. `valid` is as in `noise_loss`.
    """
    low = _at(_posterior_log_variance(schedule), t, y_t)
    log_variance = learned_log_variance(variance_range, t, schedule)
    mean = p_mean_variance(y_t, t, schedule, epsilon.detach()).mean
    divergence = _gaussian_divergence(posterior_mean(y_0, y_t, t, schedule), low, mean, log_variance)
    likelihood = -_discretised_log_likelihood(y_0, mean, 0.5 * log_variance)
    nats = torch.where(t.view(-1, 1, 1, 1).to(y_t.device) == 1, likelihood, divergence)
    return _image_mean(nats, valid) / math.log(2.0)


def _image_mean(
    values: Float[Tensor, "b c h w"], valid: Float[Tensor, "b 1 h w"] | None
) -> Float[Tensor, " b"]:
    return (values if valid is None else values * valid).flatten(1).mean(1)


def _gaussian_divergence(
    mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor
) -> Tensor:
    """KL(N_1 || N_2) of diagonal Gaussians, elementwise, in nats."""
    spread = torch.exp(log_variance_1 - log_variance_2) + (mean_1 - mean_2).square() * torch.exp(
        -log_variance_2
    )
    return 0.5 * (log_variance_2 - log_variance_1 - 1 + spread)


def _discretised_log_likelihood(y_0: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Log-probability of the 8-bit level of y_0 in [-1, 1] under a Gaussian, elementwise, in nats.

    The end levels take the rest. Levels are mirrored to the lower tail: float32 keeps a small mass there, and
    loses it beside 1.
    """
    scale = torch.exp(-log_sigma)
    offset = y_0 - mean
    inside = _mass_below((1 / 255 - offset.abs()) * scale) - _mass_below((-1 / 255 - offset.abs()) * scale)
    bottom, top = _mass_below((1 / 255 + offset) * scale), _mass_below((1 / 255 - offset) * scale)
    mass = torch.where(y_0 < -0.999, bottom, torch.where(y_0 > 0.999, top, inside))
    return torch.log(mass.clamp_min(1e-12))


def _mass_below(x: Tensor) -> Tensor:
    """Distribution function of the standard normal.

    Unlike `torch.special.ndtr` it is exact far below zero in float32.
    """
    return 0.5 * torch.erfc(-x / math.sqrt(2))
