"""The toy DDPM (Table 5: 1.44 million parameters): the U-Net, the schedule and the samplers of `diffbfr`.

It estimates the velocity, from which the noise follows, as the small stages do (`StageSpec.predicts`), by the
squared error; over 1,000 linear steps from 1e-4 to 0.02 (Ho et al. 2020), which is also TEM's schedule.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffbfr.cost.malloc import tune_malloc
from diffbfr.diffusion import noise_loss, noise_of_velocity, q_sample, velocity
from diffbfr.ema import Ema
from diffbfr.models.unet import UNet
from diffbfr.samplers import solve, start_from
from diffbfr.schedule import noise_schedule
from diffbfr.stages import TEM_SCHEDULE, SamplerSpec
from diffbfr.step_grid import step_grid
from diffbfr.unet_spec import UNetSpec
from pipelines.experiments.toys.mnist import PX, Digits, to_model, to_pixels
from pipelines.experiments.toys.training import ToyState, generator_of, run_steps

UNET: Final = UNetSpec(
    image_px=PX,
    in_channels=1,
    out_channels=1,
    inner_channels=88,
    channel_multipliers=(1,),
    res_blocks=(1,),
    attention_px=(),
    norm_groups=8,
    time="step",
    scale_shift=True,
    patch_px=4,
)
"""One level of 7 x 7 blocks of 4 x 4 pixels, with attention in the middle: the cheapest of that size."""
SAMPLER: Final = SamplerSpec("sde_dpmpp_2m", 25)
BATCH: Final = 16
LEARNING_RATE: Final = 1e-3
_WARM_UP: Final = 100
_BATCH_OF_SAMPLES: Final = 50


def train_and_sample(
    digits: Digits, seed: int, num_samples: int, num_generated: int, file: Path
) -> NDArray[np.uint8]:
    """Train on `num_samples` digits, drawn with replacement, and generate; uint8 [n, 28, 28]."""
    tune_malloc()
    torch.manual_seed(seed)
    net = UNet(UNET)
    num_steps = -(-num_samples // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    ema = Ema(net, half_life=num_samples / 20)
    schedule = noise_schedule(TEM_SCHEDULE)
    data = to_model(digits.pixels)

    def step(number: int) -> None:
        generator = generator_of(seed, "ddpm", number)
        y_0 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        t = torch.randint(1, schedule.num_steps + 1, (BATCH,), generator=generator)
        noise = torch.randn(y_0.shape, generator=generator)
        level = schedule.gamma.sqrt()[t].view(-1, 1, 1, 1)
        made = net(q_sample(y_0, t, schedule, noise), t.float())
        optimizer.param_groups[0]["lr"] = _learning_rate(number, num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss = noise_loss(made, velocity(y_0, noise, level), "l2").mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update(net, BATCH, (number + 1) * BATCH)

    run_steps(ToyState({"net": net}, {"net": optimizer}, {"ema": ema.weights}), step, num_steps, file)
    ema.copy_to(net)
    return np.concatenate(
        [
            generate(net.eval(), seed, first, min(_BATCH_OF_SAMPLES, num_generated - first))
            for first in range(0, num_generated, _BATCH_OF_SAMPLES)
        ]
    )


@torch.no_grad()
def generate(net: UNet, seed: int, first: int, count: int) -> NDArray[np.uint8]:
    """Digits number `first` to `first + count - 1` of a seed, from pure noise; uint8 [count, 28, 28]."""
    schedule = noise_schedule(TEM_SCHEDULE)

    def noise(t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 28 28"]:
        return torch.stack(
            [
                torch.randn(1, PX, PX, generator=generator_of(seed, "ddpm-noise", first + row, step))
                for row, step in enumerate(t.tolist())
            ]
        )

    def epsilon(y_t: Float[Tensor, "b 1 28 28"], t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 28 28"]:
        level = schedule.gamma.sqrt()[t].view(-1, 1, 1, 1)
        return noise_of_velocity(net(y_t, t.float()), y_t, level)

    starts = [schedule.num_steps] * count
    y_start = start_from(None, starts, schedule, noise)
    grids = [step_grid(schedule, schedule.num_steps, SAMPLER)] * count
    return to_pixels(solve(epsilon, y_start, grids, schedule, SAMPLER, noise))


def num_parameters() -> int:
    """Parameters of the network."""
    return sum(parameter.numel() for parameter in UNet(UNET).parameters())


def _learning_rate(number: int, num_steps: int) -> float:
    """A linear warm-up, a constant, and a linear fall over the second half."""
    return LEARNING_RATE * min(1.0, (number + 1) / _WARM_UP, 2 * (num_steps - number) / num_steps)
