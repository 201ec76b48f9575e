"""Dropout whose masks belong to images, not to processes: the same image drops the same values on any number of workers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd and without pattern: neighbouring layers get seeds far apart
_MASK = (1 << 63) - 1


class KeyedDropout(nn.Module):
    """Zero each value with probability p and divide the others by 1 - p; `layer` tells the dropouts of one network apart.

    An image's mask is keyed by (its seed, layer). It depends neither on the rest of the batch nor on earlier draws: a batch may be cut
    anywhere, and a forward pass that is computed again drops the same values.
    """

    def __init__(self, p: float, layer: int = 0) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def forward(self, h: Float[Tensor, "b c h w"], seeds: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b c h w"]:
        """Drop values while training; without seeds, of torch's own choice."""
        if not self.training or self.p == 0:
            return h
        if seeds is None:
            return F.dropout(h, self.p)
        kept = torch.stack([self._mask(h[0], seed) for seed in seeds.tolist()])
        return h * kept.permute(0, 3, 1, 2)

    def _mask(self, image: Float[Tensor, "c h w"], seed: int) -> Float[Tensor, "h w c"]:
        """0 where a value is dropped, else 1 / (1 - p), laid out as the kernels like their images: channels last."""
        generator = torch.Generator(image.device).manual_seed((seed ^ (self.layer + 1) * _MULTIPLIER) & _MASK)
        channels, height, width = image.shape
        keep = 1 - self.p
        return image.new_empty(height, width, channels).bernoulli_(keep, generator=generator).div_(keep)
