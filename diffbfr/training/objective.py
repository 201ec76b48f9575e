"""The objective of the three stages: Eq. 8 (IRM-1), 9 (IRM-2) and 11 (TEM)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffbfr.denoiser import Denoiser
from diffbfr.diffusion import VLB_WEIGHT, noise_loss, variational_loss
from diffbfr.training.batches import Batch


def stage_loss(denoiser: Denoiser, net: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """The objective of Eq. 8, 9 or 11, a mean over the batch; `net` is the denoiser, maybe wrapped for distributed training.

    IRM draws its noise level uniformly between the neighbours sqrt(gamma_t) and sqrt(gamma_{t-1}) (SR3); a network that hears
    steps takes t itself. TEM adds the variational term that trains its variance range. A network that predicts the velocity is
    measured in it.
    """
    schedule, spec = denoiser.schedule, denoiser.spec
    levels, device = schedule.gamma.sqrt(), batch.y_0.device
    if spec.unet.time == "noise_level":
        drawn = torch.lerp(levels[batch.t], levels[batch.t - 1], batch.fraction.double())
        time = drawn.to(device, torch.float32)
    else:
        drawn, time = levels[batch.t], batch.t.to(device, torch.float32)
    level = drawn.to(device).view(-1, 1, 1, 1)
    y_t = level.float() * batch.y_0 + (1 - level.square()).sqrt().float() * batch.noise
    output = net(y_t, time, batch.condition)
    loss = noise_loss(output[:, :3], denoiser.target(batch.y_0, batch.noise, level, batch.condition), spec.loss)
    if spec.learns_range:
        epsilon = denoiser.noise_of(output[:, :3], y_t, level, batch.condition)
        term = variational_loss(output[:, 3:], batch.y_0, y_t, batch.t, schedule, epsilon)
        loss = loss + VLB_WEIGHT * schedule.num_steps * term
    return loss.mean()
