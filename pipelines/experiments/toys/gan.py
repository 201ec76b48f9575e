"""The toy GAN (Table 5: 1.51 million parameters): fully connected layers, the loss of Goodfellow et al.

Widths of 128, 256, 512 and 1,024 from 100 random numbers, with batch normalisation behind all but the first,
have 1,510,032 parameters. Its generator maximises log D(G(z)), the non-saturating loss of that paper's
section 3; Adam and its settings are those of Radford et al. (2016).
"""

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipelines.experiments.toys.mnist import PX, Digits, to_model, to_pixels
from pipelines.experiments.toys.training import ToyState, generator_of, run_steps

LATENT: Final = 100
WIDTHS: Final = (128, 256, 512, 1024)
BATCH: Final = 64
LEARNING_RATE: Final = 2e-4
BETAS: Final = (0.5, 0.999)
_SLOPE: Final = 0.2
_BATCH_OF_SAMPLES: Final = 500


def make_generator() -> nn.Sequential:
    """(b, 100) normal numbers -> (b, 784) pixels in [-1, 1]."""
    layers: list[nn.Module] = [nn.Linear(LATENT, WIDTHS[0]), nn.LeakyReLU(_SLOPE)]
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], PX * PX), nn.Tanh())


def make_discriminator() -> nn.Sequential:
    """(b, 784) pixels -> (b, 1) logits of being real."""
    return nn.Sequential(
        nn.Linear(PX * PX, 512),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(512, 256),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(256, 1),
    )


def train_and_sample(
    digits: Digits, seed: int, num_samples: int, num_generated: int, file: Path
) -> NDArray[np.uint8]:
    """Train on `num_samples` digits, drawn with replacement, and generate; uint8 [n, 28, 28]."""
    torch.manual_seed(seed)
    generator, discriminator = make_generator(), make_discriminator()
    nets = {"generator": generator, "discriminator": discriminator}
    optimizers = {
        name: torch.optim.Adam(net.parameters(), LEARNING_RATE, BETAS, fused=True)
        for name, net in nets.items()
    }
    data = to_model(digits.pixels).flatten(1)

    def update(name: str, loss: Tensor) -> None:
        optimizers[name].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers[name].step()

    def step(number: int) -> None:
        source = generator_of(seed, "gan", number)
        real = data[torch.randint(len(data), (BATCH,), generator=source)]
        made = generator(torch.randn(BATCH, LATENT, generator=source))
        update("generator", _loss(discriminator(made), is_real=True))
        told_real, told_made = discriminator(real), discriminator(made.detach())
        update("discriminator", (_loss(told_real, is_real=True) + _loss(told_made, is_real=False)) / 2)

    run_steps(ToyState(nets, optimizers), step, -(-num_samples // BATCH), file, save_every=2000)
    return generate(generator.eval(), seed, num_generated)


@torch.no_grad()
def generate(generator: nn.Module, seed: int, count: int) -> NDArray[np.uint8]:
    """The first `count` digits of a seed; uint8 [count, 28, 28]."""
    latents = torch.randn(count, LATENT, generator=generator_of(seed, "gan-latents"))
    made = torch.cat([generator(part) for part in torch.split(latents, _BATCH_OF_SAMPLES)])
    return to_pixels(made.view(-1, 1, PX, PX))


def num_parameters() -> int:
    """Parameters of the generator."""
    return sum(parameter.numel() for parameter in make_generator().parameters())


def _loss(logits: Tensor, *, is_real: bool) -> Tensor:
    wanted = torch.ones_like(logits) if is_real else torch.zeros_like(logits)
    return binary_cross_entropy_with_logits(logits, wanted)
