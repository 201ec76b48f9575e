"""A stage's network with its schedule: estimates the noise in y_t, one step per image."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffbfr.cost.malloc import tune_malloc
from diffbfr.diffusion import noise_of_velocity, velocity
from diffbfr.models.unet import UNet
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import ResizeKernel, StageSpec

Precision = Literal["float32", "bfloat16"]


class Denoiser(nn.Module):
    """epsilon_theta of one stage (Eq. 8, 9, 11)."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.net = UNet(spec.unet)
        self.schedule: NoiseSchedule = noise_schedule(spec.schedule)
        self.precision: Precision = "float32"
        """The precision of the network when it is sampled; the state of the samplers is float32."""

    def ready(
        self, device: torch.device | str, precision: Precision = "float32", *, compiled: bool = False
    ) -> Self:
        """Move the network to a device in the layout for sampling; bfloat16 and compiling are for GPUs."""
        self.precision = precision
        if torch.device(device).type == "cpu":
            tune_malloc()
        if compiled:
            self.net.compile()
        return self.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def forward(
        self,
        y_t: Float[Tensor, "b 3 h w"],
        time: Float[Tensor, " b"],
        condition: Float[Tensor, "b conditions h w"] | None,
        dropout_seeds: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Run the network at a time: the noise level sqrt(gamma) for IRM, the step t for TEM.

        Which of them is `UNetSpec.time`. The condition of an IRM-2 that sees its input has six channels, x'_0
        and x_0 (`StageSpec.sees_input`). The output has the dtype of y_t also under autocast: bfloat16 rounds
        levels above 0.998 to 1, and the levels are needed for what is computed from it.
        """
        inputs = y_t if condition is None else torch.cat([condition, y_t], 1)
        output: Tensor = self.net(inputs, time, dropout_seeds)
        return output.to(y_t.dtype)

    def time_of(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The network's time input at step t, which a network may count from 0 (`UNetSpec.first_step`)."""
        if self.spec.unet.time == "step":
            return (t - 1 + self.spec.unet.first_step).to(torch.float32)
        return self.schedule.gamma.sqrt()[t.cpu()].to(torch.float32)

    def epsilon(
        self,
        y_t: Float[Tensor, "b 3 h w"],
        t: Int[Tensor, " b"],
        condition: Float[Tensor, "b conditions h w"] | None,
        *,
        together: bool = False,
    ) -> Float[Tensor, "b 3 h w"]:
        """Estimate the noise in y_t, without the variance range that TEM learns (`estimate`)."""
        return self.estimate(y_t, t, condition, together=together)[:, :3]

    def estimate(
        self,
        y_t: Float[Tensor, "b 3 h w"],
        t: Int[Tensor, " b"],
        condition: Float[Tensor, "b conditions h w"] | None,
        *,
        together: bool = False,
    ) -> Float[Tensor, "b c h w"]:
        """Estimate the noise in y_t, followed by the variance range where the network learns one.

        On the CPU the network runs on one image at a time: its kernels order sums by the size of the batch.
        So one image alone equals the same image in any batch, bitwise for one number of threads. With
        `together` it runs on the whole batch, which takes 0.6 of the time.
        """
        y = y_t.contiguous(memory_format=torch.channels_last)
        time = self.time_of(t).to(y_t.device)
        known = None if condition is None else condition.contiguous(memory_format=torch.channels_last)
        size = 1 if y.device.type == "cpu" and not together else len(y)
        parts = [slice(i, i + size) for i in range(0, len(y), size)]
        with torch.autocast(y.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = torch.cat(
                [self(y[part], time[part], None if known is None else known[part]) for part in parts]
            )
        level = self.schedule.gamma.sqrt()[t.cpu()].to(y.device).view(-1, 1, 1, 1)
        noise = self.noise_of(output[:, :3], y, level, known)
        return torch.cat([noise, output[:, 3:]], 1) if self.spec.learns_range else noise

    def target(
        self,
        y_0: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b 3 h w"],
        level: Float[Tensor, "b 1 1 1"],
        condition: Float[Tensor, "b conditions h w"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The training target of the network's first three channels at level = sqrt(gamma), in float64.

        It is the noise or the velocity (`StageSpec.predicts`).
        """
        if self.spec.predicts == "noise":
            return noise
        mean = 0.0 if condition is None else condition[:, :3]
        return velocity((y_0 - mean) / self.spec.prior_std, noise, self._whitened(level)[0])

    def noise_of(
        self,
        output: Float[Tensor, "b 3 h w"],
        y_t: Float[Tensor, "b 3 h w"],
        level: Float[Tensor, "b 1 1 1"],
        condition: Float[Tensor, "b conditions h w"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """The noise that the network's first three channels stand for, at level = sqrt(gamma), in float64."""
        if self.spec.predicts == "noise":
            return output
        mean = 0.0 if condition is None else condition[:, :3]
        whitened_level, spread = self._whitened(level)
        return noise_of_velocity(
            output, (y_t - level.to(y_t.dtype) * mean) / spread.to(y_t.dtype), whitened_level
        )

    def own_level(self, level: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b 1 1 1"]:
        """sqrt(gamma) of the process whose noise or velocity the network estimates.

        That is the paper's process for the noise and the whitened one for the velocity.
        """
        return level if self.spec.predicts == "noise" else self._whitened(level)[0]

    def _whitened(
        self, level: Float[Tensor, "b 1 1 1"]
    ) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """Level of the whitened process, and the standard deviation of y_t about its mean.

        y_t - level mean = level prior_std x + sigma epsilon, with x of variance one; divided by its standard
        deviation it is a diffusion of x.
        """
        signal = level * self.spec.prior_std
        spread = (signal.square() + 1 - level.square()).sqrt()
        return signal / spread, spread


def upsample(
    x: Float[Tensor, "b 3 h w"], px: int, kernel: ResizeKernel = "bicubic", *, clamp: bool = True
) -> Float[Tensor, "b 3 px px"]:
    """resize(x'_0) of Algorithm 1, to px x px, in [-1, 1] if `clamp`.

    The paper names neither kernel nor range (`StageSpec.resize_kernel`, `StageSpec.resize_clamp`).
    """
    enlarged = F.interpolate(x, size=(px, px), mode=kernel, align_corners=False)
    return enlarged.clamp(-1, 1) if clamp else enlarged
