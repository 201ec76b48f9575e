"""Floating-point operations and parameters of a network, counted on the meta device without running it.

A multiplication and an addition count as two; only convolutions and matrix products are counted, as in
`torch.utils.flop_counter`.
"""

import sys
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffbfr.models.convolution import UpsampleConv
from diffbfr.models.unet import UNet
from diffbfr.unet_spec import UNetSpec

_FORWARD_AND_BACKWARD = 3
"""A backward pass has two products, for input and weight gradient, per product of the forward pass."""


def evaluation_flops(spec: UNetSpec, *, folded: bool = False) -> int:
    """Floating-point operations of one evaluation of the network on one image, as in Table 6.

    `folded` counts those that are run, which are fewer where enlarging and convolving are one
    (`UpsampleConv`).
    """
    return _counted(spec, folded)[0]


def num_parameters(spec: UNetSpec) -> int:
    """Number of trainable parameters."""
    return _counted(spec, folded=False)[1]


def training_flops(spec: UNetSpec, num_samples: int) -> int:
    """Floating-point operations of training on so many images, forward and backward.

    The optimiser's are few and are not counted.
    """
    return _FORWARD_AND_BACKWARD * evaluation_flops(spec) * num_samples


@lru_cache
def _counted(spec: UNetSpec, folded: bool) -> tuple[int, int]:
    """FLOPs of one image, and parameters; nothing is allocated or computed."""
    with torch.device("meta"):
        net = UNet(spec)
        y = torch.empty(1, spec.in_channels, spec.image_px, spec.image_px)
        time = torch.empty(1)
    for enlarging in (module for module in net.modules() if isinstance(module, UpsampleConv) and not folded):
        enlarging.fold_px = sys.maxsize
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(y, time)
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters())
