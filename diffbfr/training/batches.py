"""Training samples: sample, variant, t and noise of a position, keyed by (seed, position) alone."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, to_tensor
from diffbfr.models.denoiser import upsample
from diffbfr.schedule import noise_schedule
from diffbfr.shards import Loaded, SampleLoader, ShardedDataset, row_at
from diffbfr.stages import StageSpec
from diffbfr.training.config import TrainingConfig, check_training
from diffbfr.training.student_grid import draw_step


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, in [-1, 1]."""

    y_0: Float[Tensor, "b 3 h w"]
    condition: Float[Tensor, "b conditions h w"] | None
    noise: Float[Tensor, "b 3 h w"]
    t: Int[Tensor, " b"]
    fraction: Float[Tensor, " b"]
    """Position of an IRM's noise level between t - 1 and t, uniform in [0, 1)."""
    dropout_seeds: Int[Tensor, " b"]
    """Seeds of the dropout masks (`diffbfr.models.dropout`)."""
    valid: Float[Tensor, "b 1 h w"] | None = None
    """1 where a face's photo holds the pixel and 0 elsewhere; None where every photo holds its whole face."""
    after: Int[Tensor, " b"] | None = None
    """In the training of a distilled stage: the step of its grid that follows t, 0 after the last."""

    def cut(self, part: slice) -> "Batch":
        """Select some of the images."""
        condition = None if self.condition is None else self.condition[part]
        return Batch(
            self.y_0[part],
            condition,
            self.noise[part],
            self.t[part],
            self.fraction[part],
            self.dropout_seeds[part],
            None if self.valid is None else self.valid[part],
            None if self.after is None else self.after[part],
        )


class PositionLoader:
    """Makes the training batches of a run from its positions; the whole state is the position."""

    def __init__(
        self, dataset: ShardedDataset, stage: StageSpec, config: TrainingConfig, column: str | None
    ) -> None:
        self.dataset = dataset
        self.stage = stage
        self.config = config
        self.column = column
        self.t_max = min(config.t_max or stage.schedule.num_steps, stage.schedule.num_steps)
        self._schedule = noise_schedule(stage.schedule)
        check_training(stage, config)
        check_column(stage, config, column)
        if not dataset.keys("train"):
            raise UsageError(
                f"the dataset in {dataset.root} has no training faces; shard more of them or lower "
                "val_fraction and test_fraction"
            )
        self._variants = _variants_left(dataset, column)
        self.keys = [key for key in dataset.keys("train") if self._variants.get(key) != []]
        """Faces to train on, without those whose images in the column are all quarantined."""
        if not self.keys:
            raise UsageError(
                f"every picture of column {column} is quarantined; expected some to learn from; train irm1 "
                "longer"
            )
        expected = dataset.info.lq_px if stage.name == "irm1" else dataset.info.hq_px
        if stage.px != expected:
            raise UsageError(
                f"{stage.name} works at {stage.px} px, the dataset in {dataset.root} offers {expected} px; "
                "shard it with this recipe"
            )

    def batches(
        self, position: int = 0, rank: int = 0, ranks: int = 1, readers: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield a rank's share of each global batch from a position on, without end.

        `readers` threads prefetch samples (0: none). Closing the generator ends them.
        """
        loader = SampleLoader(
            self.dataset,
            "train",
            self._sample_at,
            seed=self.config.seed,
            batch=self.config.global_batch,
            position=position,
            rank=rank,
            ranks=ranks,
            readers=readers,
            keys=self.keys,
        )
        with (
            closing(iter(loader)) as shares,
            closing(_one_ahead(map(self._join, shares), readers)) as batches,
        ):
            yield from batches

    def _sample_at(self, key: str, position: int) -> "_Sample":
        generator = torch.Generator().manual_seed(position_seed(self.config.seed, self.stage.name, position))
        variants = self._variants.get(key) or range(self.dataset.info.variants)
        variant = variants[int(torch.randint(len(variants), (), generator=generator))]
        t, after = self._steps(generator)
        fraction = float(torch.rand((), generator=generator))
        noise = torch.randn(3, self.stage.px, self.stage.px, generator=generator)
        side = self._side(position)
        top, left = torch.randint(self.stage.px - side + 1, (2,), generator=generator).tolist()
        target, condition = self._pair(key, variant)
        x_0 = lq_to_model(self.dataset.lq(key, variant), self.stage.px) if self.stage.sees_input else None
        dropout_seed = position_seed(self.config.seed, f"{self.stage.name}/dropout", position)
        valid = self.dataset.valid(key, variant, self.stage.px) if self.dataset.is_aligned else None
        return _Sample(
            target, condition, x_0, noise, t, after, fraction, (top, left), side, dropout_seed, valid
        )

    def _steps(self, generator: torch.Generator) -> tuple[int, int | None]:
        """The step of a sample: any, or one of a distilled stage's grid with the step that follows it."""
        if self.stage.distilled:
            return draw_step(self.stage, self._schedule, self.t_max, generator)
        return 1 + int(torch.randint(self.t_max, (), generator=generator)), None

    def keys_at(self, position: int, count: int) -> list[str]:
        """Keys of the faces at `count` positions from `position` on."""
        positions = range(position, position + count)
        return [self.keys[row_at(self.config.seed, p, len(self.keys))] for p in positions]

    def _side(self, position: int) -> int:
        """Side (px) of the images at a position: the stage's, or `patch_px` in the steps that see patches.

        Which steps these are is keyed by the step.
        """
        if self.config.patch_px is None:
            return self.stage.px
        step = position // self.config.global_batch
        generator = torch.Generator().manual_seed(
            position_seed(self.config.seed, f"{self.stage.name}/patch", step)
        )
        return (
            self.stage.px
            if float(torch.rand((), generator=generator)) < self.config.patch_full_share
            else self.config.patch_px
        )

    def _pair(self, key: str, variant: int) -> tuple[Pixels, Pixels | None]:
        """Target and condition of a variant.

        They are (x'_0, x_0) of Eq. 8, (y_0, x~'_0 or x'_0) of Eq. 9, or y_0 alone of Eq. 11.
        """
        in_colour = self.config.gray_target == "colour"
        if self.stage.name == "irm1":
            return self.dataset.hq_low(key, variant, in_colour), lq_to_model(
                self.dataset.lq(key, variant), self.stage.px
            )
        if self.stage.name == "irm2":
            condition = (
                self.dataset.hq_low(key, variant)
                if self.column is None
                else self.dataset.conditioning(self.column, key, variant)
            )
            return self.dataset.hq(key, variant, in_colour), condition
        return self.dataset.hq(key, variant, in_colour), None

    def _join(self, share: Sequence[Loaded["_Sample"]]) -> Batch:
        samples = [loaded.value for loaded in share]
        conditions = [sample.condition for sample in samples if sample.condition is not None]
        inputs = [sample.x_0 for sample in samples if sample.x_0 is not None]
        corners = [sample.corner for sample in samples]
        side = samples[0].side
        after = [sample.after for sample in samples if sample.after is not None]
        valid = [torch.from_numpy(sample.valid)[None] for sample in samples if sample.valid is not None]
        return Batch(
            y_0=_crop(to_tensor([sample.target for sample in samples]), corners, side),
            condition=_crop(self._condition(conditions, inputs), corners, side) if conditions else None,
            noise=_crop(torch.stack([sample.noise for sample in samples]), corners, side),
            t=torch.tensor([sample.t for sample in samples]),
            fraction=torch.tensor([sample.fraction for sample in samples]),
            dropout_seeds=torch.tensor([sample.dropout_seed for sample in samples]),
            valid=_crop(torch.stack(valid), corners, side) if valid else None,
            after=torch.tensor(after) if after else None,
        )

    def _condition(self, pixels: list[Pixels], inputs: list[Pixels]) -> Float[Tensor, "b conditions h w"]:
        condition = to_tensor(pixels)
        if self.stage.name != "irm2":
            return condition
        enlarged = upsample(condition, self.stage.px, self.stage.resize_kernel, clamp=self.stage.resize_clamp)
        return torch.cat([enlarged, to_tensor(inputs)], 1) if inputs else enlarged


def _one_ahead(batches: Iterator[Batch], readers: int) -> Generator[Batch, None, None]:
    """Yield the same batches, each made on a thread while the previous one is trained on.

    Without readers they are made in the caller's thread.
    """
    if readers == 0:
        yield from batches
        return
    with ThreadPoolExecutor(1, thread_name_prefix="diffbfr-batches") as thread:
        pending = thread.submit(next, batches)
        while True:
            batch = pending.result()
            pending = thread.submit(next, batches)
            yield batch


def check_column(stage: StageSpec, config: TrainingConfig, column: str | None) -> None:
    """Refuse IRM-2 without the column of its condition, and a column that a training would not read."""
    reads_column = stage.name == "irm2" and config.condition != "resized"
    if reads_column and not column:
        raise UsageError(
            "irm2 trains on a column made by irm1 and none was given; run `diffbfr condition irm1` first"
        )
    if stage.name == "irm2" and column and not reads_column:
        raise UsageError(
            f"irm2 has condition=resized and was given the column {column}; expected none; set "
            "condition=sampled to use it"
        )


def _variants_left(dataset: ShardedDataset, column: str | None) -> dict[str, list[int]]:
    """The variants that may be trained on, of each face with quarantined images in the column."""
    bad = set(dataset.column(column).quarantined) if column is not None else set()
    left: dict[str, list[int]] = {}
    for key, _ in bad:
        left[key] = [v for v in range(dataset.info.variants) if (key, f"{v}.png") not in bad]
    return left


def _crop(
    images: Float[Tensor, "b c h w"], corners: Sequence[tuple[int, int]], side: int
) -> Float[Tensor, "b c side side"]:
    """Cut a square of `side` px out of each image, at its (top, left) corner."""
    if side == images.shape[-1]:
        return images
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)]
    )


@dataclass(frozen=True)
class _Sample:
    """The sample of one position before any arithmetic, which is done for a whole batch at once."""

    target: Pixels
    condition: Pixels | None
    x_0: Pixels | None
    """The input at the size of IRM-2, where that sees it (`StageSpec.sees_input`)."""
    noise: Float[Tensor, "3 h w"]
    t: int
    after: int | None
    fraction: float
    corner: tuple[int, int]
    """Top and left of the patch that is trained on; all positions of a step share its side."""
    side: int
    dropout_seed: int
    valid: NDArray[np.float32] | None


def position_seed(seed: int, stage: str, position: int) -> int:
    """Seed of everything that is drawn for one global position of a stage's run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{position}".encode()).digest()[:8], "little") >> 1
