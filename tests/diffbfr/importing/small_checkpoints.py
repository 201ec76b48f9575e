"""Public checkpoints of the published structure and a fraction of the width, as files of torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diffbfr.importing.checkpoints import PUBLIC, PublicCheckpoint
from diffbfr.stages import SamplerSpec, StageSpec
from diffbfr.unet_spec import UNetSpec
from tests.diffbfr.importing.original_networks import GuidedNetwork, Sr3Network, randomised


def _small(known: PublicCheckpoint, px: int, inner: int, unet: dict[str, object]) -> PublicCheckpoint:
    spec: UNetSpec = replace(known.stage.unet, image_px=px, inner_channels=inner, **unet)  # type: ignore[arg-type]
    stage: StageSpec = replace(known.stage, unet=spec, fast=SamplerSpec(known.stage.fast.solver, 2))
    return replace(known, stage=stage)


SMALL = (
    _small(
        PUBLIC[0],
        16,
        8,
        {
            "channel_multipliers": (1, 2, 2),
            "res_blocks": (2, 2, 2),
            "attention_px": (8,),
            "norm_groups": 8,
        },
    ),
    _small(PUBLIC[1], 32, 8, {"channel_multipliers": (1, 2, 2, 4), "res_blocks": (1,) * 4, "norm_groups": 4}),
    _small(
        PUBLIC[2],
        32,
        32,
        {
            "channel_multipliers": (1, 1, 2),
            "res_blocks": (1, 2, 1),
            "attention_px": (16, 8),
            "head_channels": 16,
        },
    ),
)
"""Of SR3 16 -> 128 px (here 16 px), SR3 64 -> 512 px and DifFace (here 32 px)."""
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "irm1": lambda: Sr3Network(16, 8, (1, 2, 2), 2, 8, 8),
    "irm2": lambda: Sr3Network(32, 8, (1, 2, 2, 4), 1, None, 4),
    "tem": lambda: GuidedNetwork(32, 32, (1, 1, 2), (1, 2, 1), (16, 8), 16),
}


def original(stage: str, seed: int = 0) -> nn.Module:
    """The small network that was "published" for a stage, with random numbers."""
    return randomised(NETWORKS[stage](), seed)


def published(stage: str, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of its file: for SR3 those of the diffusion model, with the tables of its schedule."""
    tensors = {name: tensor.detach().clone() for name, tensor in original(stage, seed).named_parameters()}
    if stage == "tem":
        return tensors
    betas = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    tables = {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    return {f"denoise_fn.{name}": tensor for name, tensor in tensors.items()} | tables


def write_checkpoint(place: Path, stage: str, seed: int = 0) -> Path:
    """Write the file of a small public checkpoint."""
    torch.save(published(stage, seed), place)
    return place
