"""A real cascade with next to no weights: untrained, 16 -> 64 px, two or three evaluations a stage."""

from dataclasses import replace
from pathlib import Path

import torch

from diffbfr.cascade import write_record
from diffbfr.checkpoint import save_stage
from diffbfr.models.denoiser import Denoiser
from diffbfr.stages import IRM1_TINY, IRM2_TINY, TEM_TINY, StageSpec

LQ_PX, HQ_PX = 16, 64


def tiny_specs() -> tuple[StageSpec, ...]:
    specs = []
    for spec, px in ((IRM1_TINY, LQ_PX), (IRM2_TINY, HQ_PX), (TEM_TINY, HQ_PX)):
        unet = replace(
            spec.unet,
            image_px=px,
            inner_channels=8,
            channel_multipliers=(1, 2),
            res_blocks=(1, 1),
            attention_px=(),
            norm_groups=4,
            head_channels=8,
        )
        specs.append(replace(spec, unet=unet, fast=replace(spec.fast, num_evaluations=3)))
    return tuple(specs)


def make_tiny_cascade(folder: Path, seed: int = 0) -> Path:
    """Write a cascade folder; another seed gives other weights."""
    torch.manual_seed(seed)
    for spec in tiny_specs():
        weights = {
            name: torch.randn_like(tensor) * 0.05 for name, tensor in Denoiser(spec).net.named_parameters()
        }
        save_stage(folder, spec, weights)
    write_record(folder, {"seed": seed})
    return folder
