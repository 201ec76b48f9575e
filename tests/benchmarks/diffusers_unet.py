"""The networks of Table 6 as diffusers builds them: `UNet2DModel` with the same levels and widths.

diffusers has one number of blocks for all levels, TEM one for each: levels with another number are built by
diffusers' own block builders and replace those of the model.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d_blocks import get_down_block, get_up_block
from torch import Tensor, nn

from diffbfr.unet_spec import UNetSpec


class DiffusersUNet(nn.Module):
    """diffusers' network with the signature of `diffbfr.models.unet.UNet`."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        if spec.patch_px != 1:
            raise ValueError(
                f"the network folds blocks of {spec.patch_px} px; diffusers has none, expected patch_px=1"
            )
        self.net = _model(spec)

    def forward(self, y: Tensor, time: Tensor) -> Tensor:
        output: Tensor = self.net(y, time, return_dict=False)[0]
        return output


def shrunk(spec: UNetSpec, side: int, width: int) -> UNetSpec:
    """The same table at a fraction of the side and of the channels, for smaller machines."""
    return replace(
        spec,
        image_px=spec.image_px // side,
        attention_px=tuple(px // side for px in spec.attention_px),
        inner_channels=spec.inner_channels // width,
        norm_groups=spec.norm_groups // width,
        head_channels=None if spec.head_channels is None else spec.head_channels // width,
    )


def _model(spec: UNetSpec) -> UNet2DModel:
    widths = [spec.inner_channels * multiplier for multiplier in spec.channel_multipliers]
    attends = [spec.level_px(level) in spec.attention_px for level in range(len(widths))]
    model = UNet2DModel(
        sample_size=spec.image_px,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        time_embedding_dim=spec.time_channels,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple(
            "AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)
        ),
        block_out_channels=tuple(widths),
        layers_per_block=spec.res_blocks[-1],
        dropout=spec.dropout,
        attention_head_dim=spec.head_channels,
        norm_num_groups=spec.norm_groups,
        attn_norm_num_groups=spec.norm_groups,
        resnet_time_scale_shift="scale_shift" if spec.scale_shift else "default",
    )
    for level, count in enumerate(spec.res_blocks):
        if count != spec.res_blocks[-1]:
            _put_level(model, spec, widths, level, count, attends[level])
    return model


def _put_level(
    model: UNet2DModel, spec: UNetSpec, widths: list[int], level: int, count: int, attention: bool
) -> None:
    last, width = len(widths) - 1, widths[level]
    above, below = widths[max(level - 1, 0)], widths[min(level + 1, last)]
    common: dict[str, Any] = {
        "out_channels": width,
        "temb_channels": spec.time_channels,
        "resnet_eps": 1e-5,
        "resnet_act_fn": "silu",
        "resnet_groups": spec.norm_groups,
        "attention_head_dim": spec.head_channels or width,
        "resnet_time_scale_shift": "scale_shift" if spec.scale_shift else "default",
        "dropout": spec.dropout,
    }
    kind = "Attn" if attention else ""
    model.down_blocks[level] = get_down_block(
        f"{kind}DownBlock2D",
        num_layers=count,
        in_channels=above,
        add_downsample=level < last,
        downsample_padding=1,
        downsample_type="conv",
        **common,
    )
    model.up_blocks[last - level] = get_up_block(
        f"{kind}UpBlock2D",
        num_layers=count + 1,
        in_channels=above,
        prev_output_channel=below,
        add_upsample=level > 0,
        upsample_type="conv",
        **common,
    )


def flops(net: nn.Module, spec: UNetSpec) -> int:
    """Floating-point operations of one evaluation on one image, counted on the device of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(net.parameters()).device
    y = torch.empty(1, spec.in_channels, spec.image_px, spec.image_px, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(y, torch.ones(1, device=device))
    return counter.get_total_flops()
