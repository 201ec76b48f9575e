"""The names that guided diffusion's network, which DifFace trained, gives its tensors, and how two differ.

Its attention convolves in one dimension, so our kernels have an axis more, and its rows of query, key and
value lie head by head, (heads, 3, channels of a head), where ours lie (3, heads, channels of a head).
"""

from functools import partial
from typing import Final

from torch import Tensor

from diffbfr.importing.layout import Layout, Part, our_shapes
from diffbfr.unet_spec import UNetSpec

_BLOCK: Final = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION: Final = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


def guided_diffusion_layout(spec: UNetSpec) -> Layout:
    """Our tensors of a network of this kind by their names there."""
    modules = _modules(spec)
    layout: dict[str, Part] = {}
    for name, shape in our_shapes(spec).items():
        module, _, kind = name.rpartition(".")
        there = f"{modules[module]}.{kind}"
        if module.endswith("attention.qkv"):
            heads = shape[0] // 3 // (spec.head_channels or shape[0] // 3)
            layout[name] = Part(there, shape[:2] + (1,) * (kind == "weight"), partial(_sorted_rows, heads))
        elif module.endswith("attention.out") and kind == "weight":
            layout[name] = Part(there, (*shape[:2], 1), _with_axis)
        else:
            layout[name] = Part(there, shape)
    return layout


def _sorted_rows(heads: int, rows: Tensor) -> Tensor:
    """Rows (heads, 3, channels) as (3, heads, channels); a kernel of one dimension gets the second."""
    sorted_rows = rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
    return _with_axis(sorted_rows) if rows.dim() > 1 else sorted_rows


def _with_axis(kernel: Tensor) -> Tensor:
    return kernel[..., None]


def _modules(spec: UNetSpec) -> dict[str, str]:
    """Our modules -> theirs."""
    levels = len(spec.channel_multipliers)
    names = {
        "time_embedding.0": "time_embed.0",
        "time_embedding.2": "time_embed.2",
        "stem": "input_blocks.0.0",
        "norm": "out.0",
        "head": "out.2",
        **_block("middle.0", "middle_block.0", "middle_block.1"),
        **_block("middle.1", "middle_block.2", ""),
    }
    place = 1
    for level in range(levels):
        for block in range(spec.res_blocks[level]):
            there = f"input_blocks.{place}"
            names |= _block(f"encoder.{level}.blocks.{block}", f"{there}.0", f"{there}.1")
            place += 1
        if level < levels - 1:
            names[f"encoder.{level}.down"] = f"input_blocks.{place}.0.op"
            place += 1
    place = 0
    for step, level in enumerate(reversed(range(levels))):
        for block in range(spec.res_blocks[level] + 1):
            there = f"output_blocks.{place}"
            names |= _block(f"decoder.{step}.blocks.{block}", f"{there}.0", f"{there}.1")
            place += 1
        if level:  # the last block of a level enlarges, after its attention if it has one
            attends = spec.level_px(level) in spec.attention_px
            names[f"decoder.{step}.up"] = f"output_blocks.{place - 1}.{2 if attends else 1}.conv"
    return names


def _block(ours: str, theirs: str, attention: str) -> dict[str, str]:
    names = {f"{ours}.{name}": f"{theirs}.{there}" for name, there in _BLOCK.items()}
    return names | {f"{ours}.attention.{name}": f"{attention}.{there}" for name, there in _ATTENTION.items()}
