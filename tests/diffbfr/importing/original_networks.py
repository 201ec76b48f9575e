"""The two families of public networks, written again from their papers, with the names of their tensors.

They are an oracle for the import: plain, slow, and independent of `diffbfr.models`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _waves(value: Tensor, width: int) -> Tensor:
    steps = torch.arange(width // 2, dtype=torch.float32) / (width // 2)
    return value.float()[:, None] * torch.exp(-math.log(10_000) * steps)[None]


class _NoiseLevel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, level: Tensor) -> Tensor:
        angle = _waves(level, self.width)
        return torch.cat([angle.sin(), angle.cos()], 1).to(level.dtype)


class _Sr3Half(nn.Module):
    """Norm, SiLU, (dropout,) convolution."""

    def __init__(self, ins: int, outs: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, ins), nn.SiLU(), nn.Identity(), nn.Conv2d(ins, outs, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class _Sr3Noise(nn.Module):
    def __init__(self, width: int, outs: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(width, outs))


class _Sr3Residual(nn.Module):
    def __init__(self, ins: int, outs: int, width: int, groups: int) -> None:
        super().__init__()
        self.noise_func = _Sr3Noise(width, outs)
        self.block1 = _Sr3Half(ins, outs, groups)
        self.block2 = _Sr3Half(outs, outs, groups)
        self.res_conv = nn.Conv2d(ins, outs, 1) if ins != outs else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.block1(x) + self.noise_func.noise_func(level)[:, :, None, None]
        out: Tensor = self.block2(h) + self.res_conv(x)
        return out


class _Sr3Attention(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(c), -1)
        mixed: Tensor = self.out(torch.einsum("bnm,bcm->bcn", weights, v).reshape(b, c, h, w))
        return x + mixed


class _Sr3Block(nn.Module):
    def __init__(self, ins: int, outs: int, width: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.res_block = _Sr3Residual(ins, outs, width, groups)
        if attends:
            self.attn = _Sr3Attention(outs, groups)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h: Tensor = self.res_block(x, level)
        return self.attn(h) if hasattr(self, "attn") else h


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Sr3Network(nn.Module):
    """SR3: the condition and y_t side by side, and the noise level sqrt(gamma) added in every block."""

    def __init__(
        self, px: int, inner: int, multipliers: tuple[int, ...], blocks: int, attends: int | None, groups: int
    ) -> None:
        super().__init__()
        self.noise_level_mlp = nn.Sequential(
            _NoiseLevel(inner), nn.Linear(inner, 4 * inner), nn.SiLU(), nn.Linear(4 * inner, inner)
        )
        channels, skips, side = inner, [inner], px
        downs: list[nn.Module] = [nn.Conv2d(6, inner, 3, padding=1)]
        for number, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                downs.append(_Sr3Block(channels, inner * multiplier, inner, groups, side == attends))
                channels = inner * multiplier
                skips.append(channels)
            if number < len(multipliers) - 1:
                downs.append(_Down(channels))
                skips.append(channels)
                side //= 2
        ups: list[nn.Module] = []
        self.mid = nn.ModuleList(
            [_Sr3Block(channels, channels, inner, groups, attends=middle) for middle in (True, False)]
        )
        for number, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                ins = channels + skips.pop()
                ups.append(_Sr3Block(ins, inner * multiplier, inner, groups, side == attends))
                channels = inner * multiplier
            if number:
                ups.append(_Up(channels))
                side *= 2
        self.downs, self.ups = nn.ModuleList(downs), nn.ModuleList(ups)
        self.final_conv = _Sr3Half(channels, 3, groups)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        level = self.noise_level_mlp(noise_level)
        skips = []
        for layer in self.downs:
            x = layer(x, level) if isinstance(layer, _Sr3Block) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, level)
        for layer in self.ups:
            x = layer(torch.cat([x, skips.pop()], 1), level) if isinstance(layer, _Sr3Block) else layer(x)
        out: Tensor = self.final_conv(x)
        return out


class _GuidedResidual(nn.Module):
    def __init__(self, ins: int, outs: int, width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, ins), nn.SiLU(), nn.Conv2d(ins, outs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * outs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outs), nn.SiLU(), nn.Identity(), nn.Conv2d(outs, outs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if ins == outs else nn.Conv2d(ins, outs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.emb_layers(time)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        out: Tensor = self.skip_connection(x) + self.out_layers[3](F.silu(h))
        return out


class _GuidedAttention(nn.Module):
    """Heads lie one after the other, each with its query, key and value."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        b, c, *side = x.shape
        flat = x.reshape(b, c, -1)
        heads = self.qkv(self.norm(flat)).reshape(b * self.heads, 3 * c // self.heads, -1)
        q, k, v = heads.split(c // self.heads, 1)
        weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(c // self.heads), -1)
        mixed = torch.einsum("bnm,bcm->bcn", weights, v).reshape(b, c, -1)
        return (flat + self.proj_out(mixed)).reshape(b, c, *side)


class _GuidedDown(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class _GuidedUp(_Up):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class _Timed(nn.ModuleList):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, time)
        return x


class GuidedNetwork(nn.Module):
    """Guided diffusion: unconditional, the step 0..T - 1 scales and shifts, attention in heads."""

    def __init__(
        self,
        px: int,
        inner: int,
        multipliers: tuple[int, ...],
        blocks: tuple[int, ...],
        attends: tuple[int, ...],
        head_channels: int,
    ) -> None:
        super().__init__()
        self.inner, width = inner, 4 * inner
        self.time_embed = nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, width))
        channels, skips, side = inner, [inner], px
        inputs = [_Timed([nn.Conv2d(3, inner, 3, padding=1)])]
        for number, multiplier in enumerate(multipliers):
            for _ in range(blocks[number]):
                outs = inner * multiplier
                layers: list[nn.Module] = [_GuidedResidual(channels, outs, width)]
                layers += [_GuidedAttention(outs, head_channels)] * (side in attends)
                inputs.append(_Timed(layers))
                channels = outs
                skips.append(channels)
            if number < len(multipliers) - 1:
                inputs.append(_Timed([_GuidedDown(channels)]))
                skips.append(channels)
                side //= 2
        self.middle_block = _Timed(
            [
                _GuidedResidual(channels, channels, width),
                _GuidedAttention(channels, head_channels),
                _GuidedResidual(channels, channels, width),
            ]
        )
        outputs = []
        for number, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks[number] + 1):
                outs = inner * multiplier
                layers = [_GuidedResidual(channels + skips.pop(), outs, width)]
                layers += [_GuidedAttention(outs, head_channels)] * (side in attends)
                channels = outs
                if number and block == blocks[number]:
                    layers.append(_GuidedUp(channels))
                    side *= 2
                outputs.append(_Timed(layers))
        self.input_blocks, self.output_blocks = nn.ModuleList(inputs), nn.ModuleList(outputs)
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(inner, 6, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angle = _waves(step, self.inner)
        time = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype))
        skips = []
        for layer in self.input_blocks:
            x = layer(x, time)
            skips.append(x)
        x = self.middle_block(x, time)
        for layer in self.output_blocks:
            x = layer(torch.cat([x, skips.pop()], 1), time)
        out: Tensor = self.out(x)
        return out


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Random numbers of the usual sizes in every tensor, also in those that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(fan_in))
    return network.eval()
