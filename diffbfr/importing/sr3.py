"""The names that the public implementation of SR3 gives the tensors of its network.

Its blocks lie in one list a side (`downs`, `mid`, `ups`), in the order in which they run, with the resizing
convolutions between them. Convolutions, norms and the one attention head are ours in another nesting.
"""

from typing import Final

from diffbfr.importing.layout import Layout, Part, our_shapes
from diffbfr.unet_spec import UNetSpec

PREFIX: Final = "denoise_fn."
"""The network inside of the diffusion model that is saved."""
SCHEDULE: Final = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
)
"""Tables saved beside the network; they follow from the schedule, which the specification has."""
_BLOCK: Final = {
    "norm_1": "res_block.block1.block.0",
    "conv_1": "res_block.block1.block.3",
    "time": "res_block.noise_func.noise_func.0",
    "norm_2": "res_block.block2.block.0",
    "conv_2": "res_block.block2.block.3",
    "skip": "res_block.res_conv",
    "attention.norm": "attn.norm",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.out",
}


def sr3_layout(spec: UNetSpec) -> Layout:
    """Our tensors of a network of this kind by their names there."""
    modules = _modules(spec)
    layout: dict[str, Part] = {}
    for name, shape in our_shapes(spec).items():
        module, _, kind = name.rpartition(".")
        layout[name] = Part(f"{modules[module]}.{kind}", shape)
    return layout


def _modules(spec: UNetSpec) -> dict[str, str]:
    """Our modules -> theirs."""
    levels = len(spec.channel_multipliers)
    names = {
        "time_embedding.0": "noise_level_mlp.1",
        "time_embedding.2": "noise_level_mlp.3",
        "stem": "downs.0",
        "norm": "final_conv.block.0",
        "head": "final_conv.block.3",
        **_block("middle.0", "mid.0"),
        **_block("middle.1", "mid.1"),
    }
    place = 1
    for level in range(levels):
        for block in range(spec.res_blocks[level]):
            names |= _block(f"encoder.{level}.blocks.{block}", f"downs.{place}")
            place += 1
        if level < levels - 1:
            names[f"encoder.{level}.down"] = f"downs.{place}.conv"
            place += 1
    place = 0
    for step, level in enumerate(reversed(range(levels))):
        for block in range(spec.res_blocks[level] + 1):
            names |= _block(f"decoder.{step}.blocks.{block}", f"ups.{place}")
            place += 1
        if level:
            names[f"decoder.{step}.up"] = f"ups.{place}.conv"
            place += 1
    return names


def _block(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in _BLOCK.items()}
