"""The objective of the three stages: Eq. 8 (IRM-1), 9 (IRM-2) and 11 (TEM), and optional loss weights."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from diffbfr.diffusion import VLB_WEIGHT, noise_loss, variational_loss
from diffbfr.models.denoiser import Denoiser
from diffbfr.stages import StageSpec
from diffbfr.training.batches import Batch


def stage_loss(
    denoiser: Denoiser,
    net: nn.Module,
    batch: Batch,
    min_snr_gamma: float | None = None,
    t_max: int | None = None,
) -> Float[Tensor, ""]:
    """The objective of Eq. 8, 9 or 11, a mean over the batch.

    `net` is the denoiser, possibly wrapped for distributed training. IRM draws its noise level uniformly
    between the neighbours sqrt(gamma_t) and sqrt(gamma_{t-1}) (SR3); a network whose time is the step takes t
    itself. TEM adds the variational term that trains its variance range, a thousandth of the bound: the sum
    over the steps that are drawn, 1..`t_max` (None, or more than T: 1..T), of which the drawn step is one
    sample. A network that predicts the velocity is compared in velocity. `min_snr_gamma` weights the images
    by their levels (`min_snr_weight`); the variational term is not weighted. Where a batch has `valid`, what
    lies outside of a face's photo adds nothing.
    """
    schedule, spec = denoiser.schedule, denoiser.spec
    levels = schedule.gamma.sqrt()
    device = batch.y_0.device
    if spec.unet.time == "noise_level":
        drawn = torch.lerp(levels[batch.t], levels[batch.t - 1], batch.fraction.double())
        time = drawn.to(device, torch.float32)
    else:
        drawn = levels[batch.t]
        time = denoiser.time_of(batch.t).to(device)
    level = drawn.to(device).view(-1, 1, 1, 1)
    y_t = level.float() * batch.y_0 + (1 - level.square()).sqrt().float() * batch.noise
    output = net(y_t, time, batch.condition, batch.dropout_seeds)
    loss = noise_loss(
        output[:, :3],
        denoiser.target(batch.y_0, batch.noise, level, batch.condition),
        spec.loss,
        batch.valid,
    )
    if min_snr_gamma is not None:
        loss = loss * min_snr_weight(denoiser.own_level(level).flatten(), min_snr_gamma, spec).float()
    if spec.learns_range:
        epsilon = denoiser.noise_of(output[:, :3], y_t, level, batch.condition)
        term = variational_loss(output[:, 3:], batch.y_0, y_t, batch.t, schedule, epsilon, batch.valid)
        loss = loss + VLB_WEIGHT * min(t_max or schedule.num_steps, schedule.num_steps) * term
    return loss.mean()


def min_snr_weight(level: Float64[Tensor, " b"], gamma: float, spec: StageSpec) -> Float64[Tensor, " b"]:
    """Weight that makes a loss of the network's output count min(SNR, gamma) in y_0 (Hang et al. 2023).

    `level` is sqrt(gamma_t) of the process of the network's output (`Denoiser.own_level`), and SNR = level^2
    / (1 - level^2). There the squared error of the noise is SNR times that of the image, and that of the
    velocity SNR + 1 times: the image is level y - sigma v. The weights of the squared error are therefore
    min(SNR, gamma) / SNR for the noise and min(SNR, gamma) / (SNR + 1) for the velocity, their Eq. 7 to 9;
    written in the level neither is infinite at its ends. An absolute error is of the first degree in the
    error where the squared one is of the second: it takes the square root. For a velocity of the whitened
    residual the process is the whitened one, whose signal has unit variance as the derivation assumes.
    """
    signal = level.square()
    noise = 1 - level.square()
    weight = (
        torch.clamp_max(gamma * noise / signal, 1.0)
        if spec.predicts == "noise"
        else torch.minimum(signal, gamma * noise)
    )
    return weight.sqrt() if spec.loss == "l1" else weight
