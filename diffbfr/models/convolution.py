"""The convolutions of the U-Net. What a kernel wants of the weights is done once where they do not change any
more.

On a CPU oneDNN puts the weights into an order of its own in each call. Deep levels have large weights and
small maps: there that takes longer than the convolution. Frozen weights (`requires_grad_(False)`, as a loaded
stage's are) are put in order at their first use and kept beside the plain ones, which a checkpoint and
another device still want.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffbfr.stages import FOLD_PX

_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) of the four pixels that one becomes, in the order of their kernels."""

_NARROW_PX = 8
"""Below this, a side, mixing the channels of each pixel takes a fraction of the time where they lie side
by side.
"""


class Conv(nn.Conv2d):
    """A convolution of odd width that keeps the side, or halves it with stride 2."""

    def __init__(
        self, channels_in: int, channels_out: int, width: int = 3, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(channels_in, channels_out, width, stride=stride, padding=width // 2, bias=bias)
        self._ordered: dict[tuple[int, ...], Tensor] = {}

    def forward(self, h: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Convolve; frozen weights on a CPU are the same numbers in another order."""
        if self.kernel_size == (1, 1) and min(h.shape[2:]) < _NARROW_PX:
            h = h.contiguous(memory_format=torch.channels_last)
        if not self.is_frozen(h):
            return super().forward(h)
        return self.conv2d_fixed_order(h, lambda: self.weight, self.bias)

    def is_frozen(self, h: Tensor) -> bool:
        """Whether weights that are put in order serve this call: on a CPU, in float32, for maps in
        channels_last, without gradients.
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
        """Convolve with a weight made of ours, which is made and put in order once for a size of maps;
        anew when ours has changed.
        """
        key = (self.weight.data_ptr(), self.weight._version, *h.shape[2:])
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if key not in self._ordered:
            plain = make_weight().detach().contiguous(memory_format=torch.channels_last)
            self._ordered = {key: torch.ops.mkldnn._reorder_convolution_weight(plain, *shape, h.shape)}
        return torch.ops.mkldnn._convolution_pointwise(h, self._ordered[key], bias, *shape, "none", [], "")  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ordered": {}}  # what a kernel ordered can neither be copied nor pickled


class UpsampleConv(Conv):
    """Twice the side by repeating pixels, then a 3 x 3 convolution; both as one convolution of the small
    image.

    Of the nine values under the kernel at most four differ, for each of the four places that a pixel is
    repeated to: summing the weights that meet the same value leaves 2 x 2 kernels, one a place, and 4/9 of
    the operations. Below `fold_px`, a side, it does not pay.
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
            placed = self.conv2d_fixed_order(h, self._kernels, self.bias.repeat(4))
        else:
            placed = F.conv2d(h, self._kernels(), self.bias.repeat(4), padding=1)
        return _Placed.apply(placed)  # type: ignore[no-any-return,no-untyped-call]

    def _kernels(self) -> Float[Tensor, "channels _ 2 2"]:
        """The kernels of the four places, row by row."""
        sums = self.weight.new_tensor(
            [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]
        )  # (place, tap, old tap), along one axis
        kernels = torch.einsum("pti,qsj,ocij->pqocts", sums, sums, self.weight).reshape(
            4 * self.out_channels, -1, 2, 2
        )
        return kernels.contiguous(memory_format=_layout(self.weight))


class _Placed(torch.autograd.Function):
    """Put the results of the four places beside each other; torch's own way back would fill a map of zeros
    for each.
    """

    @staticmethod
    def forward(
        ctx: Any, placed: Float[Tensor, "b channels height width"]
    ) -> Float[Tensor, "b channels//4 2*height-2 2*width-2"]:
        b, channels, height, width = placed.shape
        ctx.layout = _layout(placed)
        large = _empty(placed, (b, channels // 4, 2 * height - 2, 2 * width - 2), ctx.layout)
        for (y, x), part in zip(_PLACES, placed.chunk(4, 1), strict=True):
            large[:, :, y::2, x::2] = part[:, :, y : y + height - 1, x : x + width - 1]
        return large

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        b, channels, height, width = gradient.shape
        placed = _empty(gradient, (b, 4 * channels, height // 2 + 1, width // 2 + 1), ctx.layout).zero_()
        for (y, x), part in zip(_PLACES, placed.chunk(4, 1), strict=True):
            part[:, :, y : y + height // 2, x : x + width // 2] = gradient[:, :, y::2, x::2]
        return placed


def _empty(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _layout(x: Tensor) -> torch.memory_format:
    return (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
