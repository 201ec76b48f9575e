"""Dropout whose masks are keyed by image: the same image drops the same values on any number of workers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_LANES = 4
"""Values that one 64-bit hash decides, with 16 bits each."""


class KeyedDropout(nn.Module):
    """Zero each value with probability p and divide the others by 1 - p.

    Whether a value is dropped is an integer hash of the image's seed, `layer` and the position in the image,
    so the result is the same on every device and depends neither on the rest of the batch nor on earlier
    draws: a batch may be cut anywhere, and a forward pass that is run again drops the same values. `layer`
    distinguishes the dropouts of one network. p is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float, layer: int = 0) -> None:
        super().__init__()
        self.p = p
        self.layer = layer

    def forward(
        self, h: Float[Tensor, "b c h w"], seeds: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Drop values in training mode; without seeds, random ones are drawn."""
        if not self.training or self.p == 0:
            return h
        if seeds is None:
            seeds = torch.randint(2**62, (len(h),), device=h.device)
        b, channels, height, width = h.shape
        bits = _hashes(seeds.to(h.device), self.layer, -(-channels * height * width // _LANES)).view(
            torch.int16
        )
        dropped = bits[:, : channels * height * width] < round(self.p * 2**16) - 2**15
        kept = torch.where(dropped, 0.0, 1 / (1 - self.p)).to(h.dtype)
        # The mask is laid out in channels_last, as the maps are.
        return h * kept.view(b, height, width, channels).permute(0, 3, 1, 2)


def _hashes(seeds: Int[Tensor, " b"], layer: int, count: int) -> Int[Tensor, "b count"]:
    """Hashes of (seed, layer, 0..count - 1)."""
    keys = _mixed(seeds ^ _signed((layer + 1) * 0x9E3779B97F4A7C15))
    return _mixed(torch.arange(count, device=seeds.device) * _signed(0x9E3779B97F4A7C15) + keys[:, None])


def _mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """A finaliser of the kind of SplitMix64 (Steele et al. 2014), in place; products wrap around."""
    x ^= x >> 31
    x *= _signed(0xBF58476D1CE4E5B9)
    x ^= x >> 29
    x *= _signed(0x94D049BB133111EB)
    x ^= (x >> 32) & 0xFFFFFFFF  # torch's shift repeats the sign
    return x


def _signed(x: int) -> int:
    """64 bits as torch's integers hold them."""
    return (x + 2**63) % 2**64 - 2**63
