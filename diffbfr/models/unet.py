"""The one U-Net of all three stages; the rows of Table 6 are the fields of `stages.UNetSpec`.

IRM-1 and IRM-2 follow SR3 (Saharia et al. 2022): the condition is concatenated to y_t and the time enters as
the continuous noise level sqrt(gamma). TEM follows the unconditional prior of Dhariwal & Nichol (2021):
integer t, scale-shift normalisation, several attention heads. Both are the same encoder, middle and decoder
with skip connections.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffbfr.errors import UsageError
from diffbfr.models.convolution import Conv, UpsampleConv
from diffbfr.models.dropout import KeyedDropout
from diffbfr.unet_spec import UNetSpec


class UNet(nn.Module):
    """Estimate the noise in y_t: (b, in_channels, h, w) and a time of shape (b,) -> (b, out_channels, h, w).

    The time is sqrt(gamma) in (0, 1] for `spec.time == "noise_level"`, else the step t in 1..T, as a float.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute_px: int | None = None
        """Blocks with maps of at least this side are run again in the backward pass; None keeps all maps."""
        widths = [spec.inner_channels * m for m in spec.channel_multipliers]
        self.time_embedding = nn.Sequential(
            nn.Linear(spec.inner_channels, 4 * spec.inner_channels),
            nn.SiLU(),
            nn.Linear(4 * spec.inner_channels, spec.time_channels),
        )
        self.stem = Conv(spec.in_channels * spec.patch_px**2, widths[0])
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()

        skips = [widths[0]]
        channels = widths[0]
        for level, width in enumerate(widths):
            attends = spec.level_px(level) in spec.attention_px
            blocks = nn.ModuleList()
            for _ in range(spec.res_blocks[level]):
                blocks.append(Block(channels, width, spec, attends))
                channels = width
                skips.append(channels)
            last = level == len(widths) - 1
            down = nn.Identity() if last else Conv(channels, channels, stride=2)
            if not last:
                skips.append(channels)
            self.encoder.append(nn.ModuleDict({"blocks": blocks, "down": down}))

        self.middle = nn.ModuleList(
            [Block(channels, channels, spec, attends=True), Block(channels, channels, spec, attends=False)]
        )

        for level, width in reversed(list(enumerate(widths))):
            attends = spec.level_px(level) in spec.attention_px
            blocks = nn.ModuleList()
            for _ in range(spec.res_blocks[level] + 1):
                blocks.append(Block(channels + skips.pop(), width, spec, attends))
                channels = width
            up = nn.Identity() if level == 0 else UpsampleConv(channels)
            self.decoder.append(nn.ModuleDict({"blocks": blocks, "up": up}))

        self.norm = nn.GroupNorm(spec.norm_groups, channels)
        self.head = _zeroed(Conv(channels, spec.out_channels * spec.patch_px**2))
        for layer, dropout in enumerate(
            module for module in self.modules() if isinstance(module, KeyedDropout)
        ):
            dropout.layer = layer

    def forward(
        self,
        y: Float[Tensor, "b c_in h w"],
        time: Float[Tensor, " b"],
        dropout_seeds: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c_out h w"]:
        """Run the network; `dropout_seeds`, one per image, decide what dropout drops in training."""
        embedding = self.time_embedding(_sinusoidal(time, self.spec).to(y.dtype))
        h = self.stem(F.pixel_unshuffle(y, self.spec.patch_px))
        skips = [h]
        for level, stage in enumerate(self.encoder):
            for block in stage["blocks"]:  # type: ignore[index]
                h = run_block(block, (h,), embedding, dropout_seeds, self.recompute_px)
                skips.append(h)
            if level < len(self.encoder) - 1:
                h = stage["down"](h)  # type: ignore[index]
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding, dropout_seeds)
        for level, stage in enumerate(self.decoder):
            for block in stage["blocks"]:  # type: ignore[index]
                h = run_block(block, (h, skips.pop()), embedding, dropout_seeds, self.recompute_px)
            if level < len(self.decoder) - 1:
                h = stage["up"](h)  # type: ignore[index]
        return F.pixel_shuffle(self.head(_silu(self.norm(h))), self.spec.patch_px)


def run_block(
    block: nn.Module,
    parts: tuple[Tensor, ...],
    embedding: Tensor,
    dropout_seeds: Tensor | None,
    recompute_px: int | None,
) -> Tensor:
    """Run a block on its input and skip, concatenated; a wide one keeps only these (Chen et al. 2016).

    Its maps are then computed again in the backward pass. The second run draws the same dropout and gives
    bitwise the same gradients.
    """

    def forward(*parts: Tensor) -> Tensor:
        return block(torch.cat(parts, 1) if len(parts) > 1 else parts[0], embedding, dropout_seeds)  # type: ignore[no-any-return]

    if recompute_px is None or parts[0].shape[-1] < recompute_px or not torch.is_grad_enabled():
        return forward(*parts)
    return checkpoint(forward, *parts, use_reentrant=False)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block that receives the time, followed by self-attention where the level has it."""

    def __init__(self, channels_in: int, channels_out: int, spec: UNetSpec, attends: bool) -> None:
        super().__init__()
        self.scale_shift = spec.scale_shift
        self.norm_1 = nn.GroupNorm(spec.norm_groups, channels_in)
        self.conv_1 = Conv(channels_in, channels_out)
        self.time = nn.Linear(spec.time_channels, channels_out * (2 if spec.scale_shift else 1))
        self.norm_2 = nn.GroupNorm(spec.norm_groups, channels_out)
        self.dropout = KeyedDropout(spec.dropout)
        self.conv_2 = _zeroed(Conv(channels_out, channels_out))
        self.skip = nn.Identity() if channels_in == channels_out else Conv(channels_in, channels_out, 1)
        self.attention = Attention(channels_out, spec) if attends else nn.Identity()

    def forward(
        self,
        h: Float[Tensor, "b c_in h w"],
        embedding: Float[Tensor, "b e"],
        dropout_seeds: Int[Tensor, " b"] | None,
    ) -> Float[Tensor, "b c_out h w"]:
        """Add the block's correction to its input."""
        inner = self.conv_1(_silu(self.norm_1(h)))
        if self.scale_shift:
            scale, shift = self.time(F.silu(embedding))[:, :, None, None].chunk(2, 1)
            inner = _silu(_times(self.norm_2(inner), 1 + scale).add_(shift))
        else:
            inner = _silu(self.norm_2(inner.add_(self.time(embedding)[:, :, None, None])))
        inner = self.conv_2(self.dropout(inner, dropout_seeds))
        return self.attention(inner.add_(self.skip(h)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over the pixels of a level, with a residual connection."""

    def __init__(self, channels: int, spec: UNetSpec) -> None:
        super().__init__()
        if spec.head_channels is not None and channels % spec.head_channels:
            raise UsageError(
                f"unet has {channels} channels under attention; expected a multiple of "
                f"head_channels={spec.head_channels}"
            )
        self.heads = 1 if spec.head_channels is None else channels // spec.head_channels
        self.norm = nn.GroupNorm(spec.norm_groups, channels)
        self.qkv = Conv(channels, 3 * channels, 1, bias=spec.head_channels is not None)
        self.out = _zeroed(Conv(channels, channels, 1))

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attend over all pixels of the level."""
        b, c, height, width = h.shape
        # Attention reads the channels of a pixel side by side.
        normed = self.norm(h).contiguous(memory_format=torch.channels_last)
        qkv = self.qkv(normed).reshape(b, 3, self.heads, c // self.heads, height * width).transpose(-1, -2)
        mixed = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return h + self.out(mixed.transpose(-1, -2).reshape(b, c, height, width))  # type: ignore[no-any-return]


def _sinusoidal(time: Float[Tensor, " b"], spec: UNetSpec) -> Float[Tensor, "b e"]:
    """Sines and cosines of the time at geometrically spaced frequencies, in float32.

    A noise level lies in (0, 1] and is spread over the frequencies as SR3 does, without the factor that steps
    need.
    """
    half = spec.inner_channels // 2
    exponent = torch.arange(half, device=time.device, dtype=torch.float32) / half
    angle = time.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)[None]
    waves = (
        [torch.sin(angle), torch.cos(angle)]
        if spec.time == "noise_level"
        else [torch.cos(angle), torch.sin(angle)]
    )
    return torch.cat(waves, 1)


def _silu(fresh: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else refers to: in place, unless the backward pass needs it.

    Large maps are expensive to allocate.
    """
    return F.silu(fresh, inplace=not fresh.requires_grad)


def _times(fresh: Tensor, other: Tensor) -> Tensor:
    return fresh * other if fresh.requires_grad or other.requires_grad else fresh.mul_(other)


def _zeroed(conv: Conv) -> Conv:
    """Start a residual branch at zero, so that a fresh block is the identity (Dhariwal & Nichol 2021)."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
