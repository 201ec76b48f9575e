"""The Inception network of FID: TensorFlow's `inception-2015-12-05`, up to its 2,048 pooled features.

Szegedy et al., arXiv:1512.00567, with the three deviations of that file: averages at the borders of a map
are over the positions inside, the last block pools by the maximum, and pictures are scaled to 299 px as
TensorFlow 1 did, bilinear without antialiasing and with the corners at the upper left. Batch normalisation is
folded into the convolutions. Names follow the graph of the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

from diffbfr.metrics.weights import load_weights

INPUT_PX: Final = 299
NUM_FEATURES: Final = 2048
NORM_EPSILON: Final = 1e-3
"""Of the file's batch normalisation."""


class Conv(nn.Conv2d):
    """A convolution with its folded batch normalisation, and ReLU."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """Apply both."""
        return relu(super().forward(x))


def _conv(width: int, channels: int, kernel: int | tuple[int, int], stride: int = 1) -> Conv:
    """A convolution that keeps the size of the map, or with a stride one without padding."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (0, 0) if stride > 1 else (sides[0] // 2, sides[1] // 2)
    return Conv(width, channels, sides, stride, padding)


def _tower(
    width: int, layers: Sequence[tuple[int, int | tuple[int, int]]], last_stride: int = 1
) -> nn.Sequential:
    """Convolutions in turn, (channels, kernel) each, named conv, conv_1, ..; the last may have a stride."""
    tower = nn.Sequential()
    for index, (channels, kernel) in enumerate(layers):
        stride = last_stride if index == len(layers) - 1 else 1
        tower.add_module(f"conv_{index}" if index else "conv", _conv(width, channels, kernel, stride))
        width = channels
    return tower


def _average(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """Maps of 35 x 35: 1 x 1, 5 x 5, twice 3 x 3, and a pooled branch."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.conv = _conv(width, 64, 1)
        self.tower = _tower(width, [(48, 1), (64, 5)])
        self.tower_1 = _tower(width, [(64, 1), (96, 3), (96, 3)])
        self.tower_2 = _tower(width, [(pooled, 1)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        """The branches side by side."""
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], dim=1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, 384, 3, stride=2)
        self.tower = _tower(width, [(64, 1), (96, 3), (96, 3)], last_stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """The branches side by side."""
        return torch.cat([self.conv(x), self.tower(x), max_pool2d(x, 3, 2)], dim=1)


class BlockC(nn.Module):
    """Maps of 17 x 17: convolutions of 7 x 7 as pairs of a row and a column."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        width, row, column = 768, (1, 7), (7, 1)
        self.conv = _conv(width, 192, 1)
        self.tower = _tower(width, [(inner, 1), (inner, row), (192, column)])
        self.tower_1 = _tower(width, [(inner, 1), (inner, column), (inner, row), (inner, column), (192, row)])
        self.tower_2 = _tower(width, [(192, 1)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        """The branches side by side."""
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], dim=1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        width = 768
        self.tower = _tower(width, [(192, 1), (320, 3)], last_stride=2)
        self.tower_1 = _tower(width, [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)], last_stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """The branches side by side."""
        return torch.cat([self.tower(x), self.tower_1(x), max_pool2d(x, 3, 2)], dim=1)


class BlockE(nn.Module):
    """Maps of 8 x 8: branches that end in a row and a column side by side."""

    def __init__(self, width: int, pool_maximum: bool) -> None:
        super().__init__()
        self.pool_maximum = pool_maximum
        self.conv = _conv(width, 320, 1)
        self.tower_conv = _conv(width, 384, 1)
        self.tower_mixed_conv = _conv(384, 384, (1, 3))
        self.tower_mixed_conv_1 = _conv(384, 384, (3, 1))
        self.tower_1_conv = _conv(width, 448, 1)
        self.tower_1_conv_1 = _conv(448, 384, 3)
        self.tower_1_mixed_conv = _conv(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = _conv(384, 384, (3, 1))
        self.tower_2_conv = _conv(width, 192, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        """The branches side by side."""
        first, second = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        branches = [
            self.conv(x),
            self.tower_mixed_conv(first),
            self.tower_mixed_conv_1(first),
            self.tower_1_mixed_conv(second),
            self.tower_1_mixed_conv_1(second),
            self.tower_2_conv(max_pool2d(x, 3, 1, 1) if self.pool_maximum else _average(x)),
        ]
        return torch.cat(branches, dim=1)


class Inception(nn.Module):
    """The whole network, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv(3, 32, 3, stride=2)
        self.conv_1 = Conv(32, 32, 3)
        self.conv_2 = _conv(32, 64, 3)
        self.conv_3 = _conv(64, 80, 1)
        self.conv_4 = Conv(80, 192, 3)
        self.mixed = BlockA(192, 32)
        self.mixed_1 = BlockA(256, 64)
        self.mixed_2 = BlockA(288, 64)
        self.mixed_3 = BlockB(288)
        self.mixed_4, self.mixed_5, self.mixed_6, self.mixed_7 = (BlockC(c) for c in (128, 160, 160, 192))
        self.mixed_8 = BlockD()
        self.mixed_9 = BlockE(1280, pool_maximum=False)
        self.mixed_10 = BlockE(2048, pool_maximum=True)

    def forward(self, x: Float[Tensor, "b 3 299 299"]) -> Float[Tensor, "b 2048"]:
        """Pooled features of RGB in the range of the file, (pixel - 128) / 128."""
        x = max_pool2d(self.conv_2(self.conv_1(self.conv(x))), 3, 2)
        x = max_pool2d(self.conv_4(self.conv_3(x)), 3, 2)
        x = self.mixed_2(self.mixed_1(self.mixed(x)))
        x = self.mixed_7(self.mixed_6(self.mixed_5(self.mixed_4(self.mixed_3(x)))))
        x = self.mixed_10(self.mixed_9(self.mixed_8(x)))
        return x.mean(dim=(2, 3))


class InceptionFeatures:
    """The features of FID and KID with the weights of one file; build it once, call it on batches."""

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self._network = load_weights(Inception(), weights, "FID's Inception").to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """2,048 features of every picture of a batch; RGB in [-1, 1], of 8-bit levels."""
        levels = ((image.float() + 1) * 127.5).to(self._device)
        features: Tensor = self._network((tensorflow_resize(levels, INPUT_PX) - 128) / 128)
        return features.cpu()


def tensorflow_resize(image: Float[Tensor, "b c h w"], px: int) -> Float[Tensor, "b c px px"]:
    """Bilinear as in TensorFlow 1: output position i reads input position i * size / px; no antialiasing."""
    for axis in (2, 3):
        size = image.shape[axis]
        place = torch.arange(px, dtype=torch.float32, device=image.device) * (size / px)
        low = place.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        fraction = (place - low).view((-1, 1) if axis == 2 else (-1,))
        below, above = image.index_select(axis, low), image.index_select(axis, high)
        image = below + (above - below) * fraction
    return image
