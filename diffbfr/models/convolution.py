"""The convolutions of the U-Net; work on frozen weights is done once.

On a CPU oneDNN reorders the weights in each call. Deep levels have large weights and small maps, where that
takes longer than the convolution itself. Frozen weights (`requires_grad_(False)`, as in a loaded stage) are
reordered at their first use and kept beside the plain ones, which checkpoints and other devices still need.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FOLD_PX = 16
"""Maps at least this wide are enlarged and convolved in one operation (`UpsampleConv`)."""

_SUBPIXELS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) of the four subpixels of a pixel, in the order of their kernels."""

_SMALL_PX = 8
"""Below this side, 1 x 1 convolutions take a fraction of the time in channels_last."""


class Conv(nn.Conv2d):
    """A convolution of odd width that keeps the side, or halves it with stride 2."""

    def __init__(
        self, channels_in: int, channels_out: int, width: int = 3, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(channels_in, channels_out, width, stride=stride, padding=width // 2, bias=bias)
        self._reordered: dict[tuple[int, ...], Tensor] = {}

    def forward(self, h: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Convolve; with frozen weights on a CPU the weights are taken in oneDNN's order."""
        if self.kernel_size == (1, 1) and min(h.shape[2:]) < _SMALL_PX:
            h = h.contiguous(memory_format=torch.channels_last)
        if not self.is_frozen(h):
            return super().forward(h)
        return self.conv2d_fixed_order(h, lambda: self.weight, self.bias)

    def is_frozen(self, h: Tensor) -> bool:
        """Whether reordered weights serve this call.

        That needs a CPU, float32, maps in channels_last, and no gradients.
        """
        return (
            h.device.type == "cpu"
            and not self.weight.requires_grad
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and h.dtype == self.weight.dtype == torch.float32
            and h.is_contiguous(memory_format=torch.channels_last)
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )

    def conv2d_fixed_order(self, h: Tensor, make_weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """Convolve with a weight derived from ours, which is made and reordered once per size of the maps.

        It is made again when our weight has changed.
        """
        key = (self.weight.data_ptr(), self.weight._version, *h.shape[2:])
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if key not in self._reordered:
            plain = make_weight().detach().contiguous(memory_format=torch.channels_last)
            self._reordered = {key: torch.ops.mkldnn._reorder_convolution_weight(plain, *shape, h.shape)}
        return torch.ops.mkldnn._convolution_pointwise(h, self._reordered[key], bias, *shape, "none", [], "")  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_reordered": {}}  # a reordered weight can be neither copied nor pickled


class UpsampleConv(Conv):
    """Double the side by repeating pixels, then convolve 3 x 3, as one convolution of the small image.

    Each pixel is repeated to four subpixels, and under the kernel of one of them at most four of the nine
    values differ. Summing the weights that meet the same value leaves one 2 x 2 kernel per subpixel, and 4/9
    of the operations. Below a side of `fold_px` that does not pay.
    """

    fold_px: int = FOLD_PX

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Enlarge and convolve."""
        if min(h.shape[2:]) < self.fold_px:
            return super().forward(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        assert self.bias is not None
        if self.is_frozen(h):
            stacked = self.conv2d_fixed_order(h, self._kernels, self.bias.repeat(4))
        else:
            stacked = F.conv2d(h, self._kernels(), self.bias.repeat(4), padding=1)
        return _PixelShuffle.apply(stacked)  # type: ignore[no-any-return,no-untyped-call]

    def _kernels(self) -> Float[Tensor, "channels _ 2 2"]:
        """The kernels of the four subpixels, row by row."""
        # Along one axis, [subpixel, tap of the 2 x 2 kernel, tap of the 3 x 3 kernel].
        sums = self.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("pti,qsj,ocij->pqocts", sums, sums, self.weight).reshape(
            4 * self.out_channels, -1, 2, 2
        )
        return kernels.contiguous(memory_format=_layout(self.weight))


class _PixelShuffle(torch.autograd.Function):
    """Interleave the maps of the four subpixels; plain autograd would fill a map of zeros for each."""

    @staticmethod
    def forward(
        ctx: Any, stacked: Float[Tensor, "b channels height width"]
    ) -> Float[Tensor, "b channels//4 2*height-2 2*width-2"]:
        b, channels, height, width = stacked.shape
        ctx.layout = _layout(stacked)
        large = _empty(stacked, (b, channels // 4, 2 * height - 2, 2 * width - 2), ctx.layout)
        for (y, x), part in zip(_SUBPIXELS, stacked.chunk(4, 1), strict=True):
            large[:, :, y::2, x::2] = part[:, :, y : y + height - 1, x : x + width - 1]
        return large

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        b, channels, height, width = gradient.shape
        stacked = _empty(gradient, (b, 4 * channels, height // 2 + 1, width // 2 + 1), ctx.layout).zero_()
        for (y, x), part in zip(_SUBPIXELS, stacked.chunk(4, 1), strict=True):
            part[:, :, y : y + height // 2, x : x + width // 2] = gradient[:, :, y::2, x::2]
        return stacked


def _empty(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _layout(x: Tensor) -> torch.memory_format:
    return (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
