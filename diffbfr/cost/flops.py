"""What a network costs before anyone runs it: floating-point operations and parameters, counted on the meta
device.

A multiplication and an addition count as two, convolutions and matrix products only, as
`torch.utils.flop_counter` does.
"""

import sys
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffbfr.models.convolution import UpsampleConv
from diffbfr.models.unet import UNet
from diffbfr.stages import UNetSpec

_FORWARD_AND_BACKWARD = 3
"""A backward pass is two products, for the input's and the weight's gradient, where the forward pass is
one.
"""


def evaluation_flops(spec: UNetSpec, *, folded: bool = False) -> int:
    """Floating-point operations of one evaluation of the network on one image.

    They are Table 6's; `folded` counts those that are run, fewer where enlarging and convolving are one
    (`UpsampleConv`).
    """
    return _counted(spec, folded)[0]


def num_parameters(spec: UNetSpec) -> int:
    """Count the numbers that training changes."""
    return _counted(spec, folded=False)[1]


def training_flops(spec: UNetSpec, num_samples: int) -> int:
    """Floating-point operations of training on so many images, forward and backward; the optimiser's are
    few and not counted.
    """
    return _FORWARD_AND_BACKWARD * evaluation_flops(spec) * num_samples


@lru_cache
def _counted(spec: UNetSpec, folded: bool) -> tuple[int, int]:
    """FLOPs of one image, and parameters; no memory is taken and nothing is computed."""
    with torch.device("meta"):
        net = UNet(spec)
        y = torch.empty(1, spec.in_channels, spec.image_px, spec.image_px)
        time = torch.empty(1)
    for enlarging in (module for module in net.modules() if isinstance(module, UpsampleConv) and not folded):
        enlarging.fold_px = sys.maxsize
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(y, time)
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters())
