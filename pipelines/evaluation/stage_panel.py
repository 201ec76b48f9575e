"""Panel of a stage during training: the input, the output and the ground truth of some held-out faces."""

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
    """A stage with the weights in a folder, and the first held-out faces of `dataset`.

    The input of IRM-2 is read from `column`, if one is given.
    """

    dataset: str
    weights: Path
    stage: StageSpec
    column: str = ""
    num_faces: int = 4


def draw_panel(task: PanelTask) -> bytes:
    """A PNG of input | output | ground truth, each at least 128 px a side.

    The noise is keyed by the LQ files, so that panels differ by the weights alone.
    """
    dataset, spec = open_dataset(task.dataset), task.stage
    keys = [*dataset.keys("val"), *dataset.keys("test"), *dataset.keys("train")][: task.num_faces]
    stage = load_stage(task.weights, spec.name, spec)
    inputs = _inputs(dataset, keys, task)
    noise = [noise_key(hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest()) for key in keys]
    start = None if spec.name == "irm1" else inputs
    condition = inputs if spec.conditional else None
    if spec.sees_input:
        x_0 = to_tensor([lq_to_model(dataset.lq(key, 0), spec.px) for key in keys])
        condition = torch.cat([inputs, x_0], 1)
    made = sample(stage, noise, "fast", start_image=start, condition=condition)
    truth = [dataset.hq_low(key, 0) if spec.name == "irm1" else dataset.hq(key, 0) for key in keys]
    # early weights may give values that are not finite; they are shown as gray
    made = made.where(made.isfinite(), 0.0)
    rows = []
    for images in zip(to_pixels(inputs), to_pixels(made), truth, strict=True):
        rows.append(np.concatenate([_enlarge(image) for image in images], axis=1))
    return encode_png(np.concatenate(rows, axis=0))


def _inputs(dataset: ShardedDataset, keys: list[str], task: PanelTask) -> torch.Tensor:
    """The stage's input, b 3 px px in [-1, 1].

    It is the LQ face for IRM-1, else the enlarged image of the column, or the enlarged x'_0 without a column.
    """
    spec = task.stage
    if spec.name == "irm1":
        return to_tensor([lq_to_model(dataset.lq(key, 0), spec.px) for key in keys])
    low = [
        dataset.conditioning(task.column, key, 0) if task.column else dataset.hq_low(key, 0) for key in keys
    ]
    return upsample(to_tensor(low), spec.px, spec.resize_kernel, clamp=spec.resize_clamp)


def _enlarge(image: Pixels) -> Pixels:
    """Enlarge by the smallest whole factor that gives at least `SHOWN_PX`."""
    side = image.shape[0]
    return resize(image, side * max(1, -(-SHOWN_PX // side)), "bicubic")
