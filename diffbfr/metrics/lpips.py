"""LPIPS: a perceptual distance calibrated on human judgement (Zhang et al., CVPR 2018), version 0.1.

The features of an ImageNet classifier at five depths are scaled to unit length over channels; the squared
differences are weighted per channel, summed, averaged over positions, and added over depths. The weights are
those of the packages `lpips` 0.1 (linear layers) and of ImageNet's AlexNet and VGG-16, which `diffbfr setup
metrics` fetches.
"""

from pathlib import Path
from typing import Final, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.weights import load_weights

Trunk: TypeAlias = Literal["alex", "vgg"]

SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's colours, for RGB in [-1, 1], as LPIPS rounds them."""
SMALLEST_PX: Final = 32
"""Below this side the last features of AlexNet have no position left."""
ALEX_LAYERS: Final = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Channels, kernel, stride and padding; the features are taken after each of them."""
ALEX_POOLED_BEFORE: Final = (1, 2)
VGG_BLOCKS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3 x 3 convolutions; the features are those at the end of each block."""

_PROTOCOL: Final = (
    "LPIPS 0.1 with the {} trunk and the linear layers of the package lpips, RGB scaled to [-1, 1], "
    "pictures at their own size; 0 for equal pictures"
)
INFO_ALEX: Final = MetricInfo("LPIPS (Alex)", "1", "", "lower", _PROTOCOL.format("AlexNet"))
INFO_VGG: Final = MetricInfo("LPIPS (VGG)", "1", "", "lower", _PROTOCOL.format("VGG-16"))


class AlexTrunk(nn.Module):
    """The convolutions of AlexNet; returns the features after each."""

    channels: tuple[int, ...] = tuple(layer[0] for layer in ALEX_LAYERS)

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        width = 3
        for channels, kernel, stride, padding in ALEX_LAYERS:
            self.convs.append(nn.Conv2d(width, channels, kernel, stride, padding))
            width = channels

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Features at five depths of normalised RGB."""
        features = []
        for index, conv in enumerate(self.convs):
            x = relu(conv(max_pool2d(x, 3, 2) if index in ALEX_POOLED_BEFORE else x))
            features.append(x)
        return features


class VggTrunk(nn.Module):
    """The convolutions of VGG-16; returns the features at the end of each of its five blocks."""

    channels: tuple[int, ...] = tuple(block[-1] for block in VGG_BLOCKS)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        width = 3
        for block in VGG_BLOCKS:
            convs = nn.ModuleList()
            for channels in block:
                convs.append(nn.Conv2d(width, channels, 3, padding=1))
                width = channels
            self.blocks.append(convs)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Features at five depths of normalised RGB."""
        features = []
        for index, convs in enumerate(self.blocks):
            x = max_pool2d(x, 2, 2) if index else x
            for conv in convs:  # type: ignore[attr-defined]
                x = relu(conv(x))
            features.append(x)
        return features


class LpipsNetwork(nn.Module):
    """A trunk and the weights of its channels."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = AlexTrunk() if trunk == "alex" else VggTrunk()
        self.linear = nn.ParameterList([torch.zeros(1, width, 1, 1) for width in self.trunk.channels])

    def forward(
        self, estimate: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """The distance of every pair; RGB in [-1, 1]."""
        total = torch.zeros(len(estimate), device=estimate.device)
        pairs = zip(self._features(estimate), self._features(reference), strict=True)
        for weight, (a, b) in zip(self.linear, pairs, strict=True):
            difference = (_unit(a) - _unit(b)).square()
            total = total + (weight * difference).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _c _h _w"]]:
        shift, scale = (image.new_tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        features: list[Tensor] = self.trunk((image - shift) / scale)
        return features


class Lpips:
    """LPIPS with the weights of one file; build it once, call it on batches."""

    def __init__(self, trunk: Trunk, weights: str | Path, device: str = "cpu") -> None:
        self._network = load_weights(LpipsNetwork(trunk), weights, f"LPIPS ({trunk})").to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(
        self, estimate: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 _h _w"]
    ) -> Float[Tensor, " b"]:
        """Distance of every picture of a batch to its reference; RGB in [-1, 1]."""
        if estimate.shape != reference.shape:
            raise UsageError(
                f"LPIPS got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must have one "
                "shape; resize first"
            )
        if min(estimate.shape[2:]) < SMALLEST_PX:
            raise UsageError(
                f"LPIPS got pictures of {estimate.shape[2]} x {estimate.shape[3]}; it needs {SMALLEST_PX} "
                "px a side; use larger ones"
            )
        distance: Tensor = self._network(*(side.float().to(self._device) for side in (estimate, reference)))
        return distance.cpu()


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
