"""A picture of what a stage makes while it is trained: a row a held-out face, with what it is given, what
it makes of it, and the truth.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffbfr.cascade import sample
from diffbfr.checkpoint import load_stage
from diffbfr.images import Pixels, encode_png, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.models.denoiser import upsample
from diffbfr.shards import ShardedDataset
from diffbfr.stages import StageSpec
from pipelines.dataset.manifest import open_dataset

SHOWN_PX = 128


@dataclass(frozen=True)
class PanelTask:
    """The stage in the folder `weights`, on the first held-out faces of `dataset`; IRM-2 is given those of
    `column`, if there is one.
    """

    dataset: str
    weights: Path
    stage: StageSpec
    column: str = ""
    num_faces: int = 4


def draw_panel(task: PanelTask) -> bytes:
    """PNG of input | output | ground truth, each at least 128 px; noise is keyed by the LQ files, so that
    only weights differ.
    """
    dataset, spec = open_dataset(task.dataset), task.stage
    keys = [*dataset.keys("val"), *dataset.keys("test"), *dataset.keys("train")][: task.num_faces]
    stage = load_stage(task.weights, spec.name, spec)
    given = _given(dataset, keys, task)
    noise = [noise_key(hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest()) for key in keys]
    start, condition = None if spec.name == "irm1" else given, given if spec.conditional else None
    made = sample(stage, noise, "fast", start_image=start, condition=condition)
    truth = [dataset.hq_low(key, 0) if spec.name == "irm1" else dataset.hq(key, 0) for key in keys]
    made = made.where(made.isfinite(), 0.0)
    rows = zip(to_pixels(given), to_pixels(made), truth, strict=True)
    return encode_png(
        np.concatenate([np.concatenate([_shown(picture) for picture in row], axis=1) for row in rows], axis=0)
    )


def _given(dataset: ShardedDataset, keys: list[str], task: PanelTask) -> torch.Tensor:
    """What the stage starts from, in [-1, 1] at its size: the LQ face, the column's picture enlarged, or
    x'_0 enlarged.
    """
    spec = task.stage
    if spec.name == "irm1":
        return to_tensor([lq_to_model(dataset.lq(key, 0), spec.px) for key in keys])
    low = [
        dataset.conditioning(task.column, key, 0) if task.column else dataset.hq_low(key, 0) for key in keys
    ]
    return upsample(to_tensor(low), spec.px, spec.resize_kernel, clamp=spec.resize_clamp)


def _shown(picture: Pixels) -> Pixels:
    """Small pictures enlarged by a whole factor, until a person can see them."""
    return resize(picture, picture.shape[0] * max(1, -(-SHOWN_PX // picture.shape[0])), "bicubic")
