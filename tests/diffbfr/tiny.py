"""Stages that train in seconds (8 and 32 px) and a dataset for them, made in this process from procedural
faces.
"""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from diffbfr.degradation import PRESETS
from diffbfr.images import encode_png, lq_to_model
from diffbfr.shards import ColumnInfo, ShardedDataset
from diffbfr.stages import SR3_SCHEDULE, TEM_SCHEDULE, SamplerSpec, StageName, StageSpec
from diffbfr.unet_spec import UNetSpec
from pipelines.dataset.columns import finish_column, write_column_shard
from pipelines.dataset.manifest import open_dataset
from pipelines.sources import open_source
from pipelines.steps.shard import ShardConfig, finish_dataset, plan_shards, shard

Module = TypeVar("Module", bound=nn.Module)

COLUMN = "irm1-test"
"""Stands in for IRM-1's restorations: the low-quality faces themselves."""


def _unet(image_px: int, in_channels: int, patch_px: int, attention_px: tuple[int, ...]) -> UNetSpec:
    return UNetSpec(
        image_px=image_px,
        in_channels=in_channels,
        out_channels=3,
        inner_channels=8,
        channel_multipliers=(1, 2),
        res_blocks=(1, 1),
        attention_px=attention_px,
        norm_groups=4,
        patch_px=patch_px,
    )


_TEM_UNET = UNetSpec(
    image_px=32,
    in_channels=3,
    out_channels=6,
    inner_channels=8,
    channel_multipliers=(1, 2),
    res_blocks=(1, 1),
    attention_px=(),
    norm_groups=4,
    time="step",
    scale_shift=True,
    head_channels=8,
    patch_px=2,
)

TINY_STAGES: dict[StageName, StageSpec] = {
    "irm1": StageSpec(
        "irm1", _unet(8, 6, 1, (4,)), SR3_SCHEDULE, start=2000, fast=SamplerSpec("dpmpp_2m", 4)
    ),
    "irm2": StageSpec("irm2", _unet(32, 6, 2, ()), SR3_SCHEDULE, start=1000, fast=SamplerSpec("dpmpp_2m", 3)),
    "tem": StageSpec("tem", _TEM_UNET, TEM_SCHEDULE, start=100, fast=SamplerSpec("sde_dpmpp_2m", 3)),
}


def wake(module: Module, seed: int = 0) -> Module:
    """Give random weights to a network, also where a fresh one has zeros, so that each part shows in the
    output.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
            gain = 1.0 if bool((p == 1).all()) else 0.0  # of a normalisation
            p.copy_(gain + scale * torch.randn(p.shape, generator=generator))
    return module


def make_dataset(root: Path, faces: int = 20) -> ShardedDataset:
    """Shard procedural faces at 32 and 8 px with two variants each, and append the column that IRM-2
    trains on.
    """
    config = ShardConfig(
        hq_px=32,
        lq_px=8,
        variants=2,
        shard_size=8,
        val_fraction=0.0,
        test_fraction=0.0,
        seed=3,
        degradation=PRESETS["paper"],
    )
    tasks = plan_shards(open_source(f"synthetic:count={faces},seed=0,px=32"), config, str(root))
    for task in tasks:
        shard(task)
    finish_dataset(str(root), tasks)
    return add_column(root)


def add_column(root: Path) -> ShardedDataset:
    """Append a column of the low-quality faces, all variants, to a dataset."""
    dataset = open_dataset(root)
    info = dataset.info
    digests = [f"task-{index}" for index in range(len(dataset.shards))]
    for index, keys in enumerate(dataset.shards):
        variants = range(info.variants)
        files = (
            (key, f"{v}.png", encode_png(lq_to_model(dataset.lq(key, v), info.lq_px)))
            for key in keys
            for v in variants
        )
        write_column_shard(str(root), COLUMN, index, digests[index], files)
    finish_column(
        str(root), ColumnInfo(COLUMN, tuple(f"{v}.png" for v in range(info.variants)), "a" * 64), digests
    )
    return open_dataset(root)
