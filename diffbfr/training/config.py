"""Settings of a training that change its result. Importing them imports no torch, so a plan is cheap."""

from dataclasses import dataclass, field
from typing import Literal

from diffbfr.documents import check_whole
from diffbfr.errors import UsageError
from diffbfr.spec import LATER
from diffbfr.stages import StageSpec

Precision = Literal["float32", "bfloat16"]
LONGEST_EMA = 12**-0.5
"""Relative standard deviation of a power function of exponent 0, the plain mean of all weights so far."""
MAX_TEACHER_STEPS = 100
NON_IDENTITY_FIELDS = ("max_skipped", "checkpoint_samples", "keep_checkpoints", "keep_best")
"""Settings that do not change the result: they may differ between a run and its continuation."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a stage is trained; every field but `NON_IDENTITY_FIELDS` changes the result."""

    num_samples: int
    global_batch: int
    learning_rate: float
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    """Weight decay of either optimiser.

    The families of networks in Table 6 decay nothing; torch's AdamW would take 0.01 by default.
    """
    warmup_samples: int = 0
    decay_samples: int = 0
    """The rate falls linearly to zero over the last so many samples; 0 keeps it constant (the paper)."""
    ema_half_life: float | None = 50_000.0
    """Half-life of the averaged weights in samples; None keeps no average and ends with the last weights.

    0.999 per step at batch 64, as in the family of TEM, is a half-life of 44,339 samples.
    """
    t_max: int | None = None
    """Largest t that is trained; None is the paper's uniform 1..T.

    Sampling never visits a t above the stage's start.
    """
    condition: Literal["sampled", "resized", "both"] = "sampled"
    """The condition of IRM-2, enlarged: a sample of IRM-1 (Eq. 9), or x'_0 of the ground truth (Algorithm 1).

    The second needs no column, but meets the errors of IRM-1 only when it samples. `both` is not the paper:
    the sample of IRM-1, and beside it x_0 at the size of IRM-2, in a network of nine input channels. Inputs
    larger than IRM-1 then lose nothing.
    """
    gray_target: Literal["gray", "colour"] = "gray"
    """Target of a gray photo: the gray face, so that it stays gray, or the face in colour (GFPGAN)."""
    min_snr_gamma: float | None = None
    """Weight the loss of a noise level by min(SNR, gamma) in y_0; None is the paper's weight of 1.

    Hang et al. 2023 take 5 (`diffbfr.training.objective`).
    """
    patch_px: int | None = None
    """Train IRM-2 or TEM on crops of this side (Wang et al. 2023, Patch Diffusion); None is whole images.

    Sampling sees whole images either way: the network is convolutional, and attention takes any size. The
    coordinate channels that they add to the input are left out: Table 6 fixes the input channels, and what a
    coordinate tells, IRM-2 learns from its condition and TEM from an image under little noise.
    """
    teacher_steps: int | None = field(default=None, metadata=LATER)
    """Evaluations of the teacher for one of a distilled stage; None trains on data.

    The teacher is what `init` names. It follows its trajectory by DDIM (`diffbfr.training.distillation`).
    """
    patch_full_share: float = 0.5
    """Fraction of the steps that see whole images, with `patch_px` (their p = 0.5).

    Attention and image borders learn their own scale in these steps.
    """
    max_gradient_norm: float | None = None
    max_skipped: int = 10
    """Steps whose loss or gradient is not finite are skipped and logged; more of them end the run."""
    reduce_leaves: int | None = None
    """Number of parts, a power of two, in which a global batch is computed and summed in one order.

    Any number of workers that divides it then ends with bitwise the same weights, for one number of threads
    each (`diffbfr.training.deterministic_reduce`). With None the workers agree to rounding, which a long
    training amplifies.
    """
    precision: Precision = "float32"
    """Precision of the network; weights, moments and averages stay in float32 (torch.autocast)."""
    checkpoint_samples: int = 20_000
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: bool = False
    """Also keep the checkpoint of the lowest training loss, a mean over the steps since the one before it.

    It is for inspection: its `ema.safetensors` are weights like a stage's. Resuming always takes the newest
    one.
    """
    average_samples: int | None = None
    """Keep the (averaged) weights every so many samples, for a curve over training; None keeps the last."""
    ema_lengths: tuple[float, ...] = ()
    """Also keep power-function averages of these two lengths with each of those averages.

    Lengths are relative standard deviations, such as 0.05 and 0.10 of the samples so far; an average of any
    other length can be computed from them after training (Karras et al. 2024, `diffbfr.ema`).
    """
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.global_batch < 1:
            raise UsageError(
                f"training has num_samples={self.num_samples}, global_batch={self.global_batch}; expected at "
                "least 1"
            )
        if self.reduce_leaves is not None and (
            self.reduce_leaves < 1
            or self.reduce_leaves & (self.reduce_leaves - 1)
            or self.global_batch % self.reduce_leaves
        ):
            raise UsageError(
                f"training has reduce_leaves={self.reduce_leaves} and global_batch={self.global_batch}; "
                "expected a power of two that divides the batch"
            )
        if self.keep_checkpoints < 1:
            raise UsageError(f"training has keep_checkpoints={self.keep_checkpoints}; expected at least 1")
        if self.learning_rate <= 0:
            raise UsageError(f"training has learning_rate={self.learning_rate}; expected a positive number")
        if self.weight_decay < 0:
            raise UsageError(f"training has weight_decay={self.weight_decay}; expected 0 or more")
        if self.ema_half_life is not None and self.ema_half_life <= 0:
            raise UsageError(
                f"training has ema_half_life={self.ema_half_life}; expected a number of samples, or none for "
                "the last weights"
            )
        if self.average_samples is not None and self.average_samples < 1:
            raise UsageError(
                f"training has average_samples={self.average_samples}; expected at least 1, or none to keep "
                "the last alone"
            )
        if self.t_max is not None and self.t_max < 1:
            raise UsageError(f"training has t_max={self.t_max}; expected at least 1, or none for every step")
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise UsageError(
                f"training has min_snr_gamma={self.min_snr_gamma}; expected a positive number, or none for "
                "equal weights"
            )
        if self.teacher_steps is not None:
            check_whole("training", "teacher_steps", self.teacher_steps, 1, MAX_TEACHER_STEPS)
        if not 0 <= self.patch_full_share < 1:
            raise UsageError(
                f"training has patch_full_share={self.patch_full_share}; expected a share in [0, 1)"
            )
        self._check_ema_lengths()

    def _check_ema_lengths(self) -> None:
        """Two lengths are needed as a basis, and snapshots of them to combine."""
        if not self.ema_lengths:
            return
        if len(set(self.ema_lengths)) != 2 or not all(
            0 < length < LONGEST_EMA for length in self.ema_lengths
        ):
            raise UsageError(
                f"training has ema_lengths={self.ema_lengths}; expected two lengths between 0 and "
                f"{LONGEST_EMA:.3f}, such as 0.05 and 0.1"
            )
        if self.average_samples is None:
            raise UsageError(
                f"training has ema_lengths={self.ema_lengths} without average_samples; expected how often to "
                "keep them; set it"
            )

    def largest_px(self, image_px: int) -> int:
        """Side (px) of the largest images that a step sees, for images of `image_px`."""
        return self.patch_px if self.patch_px is not None and not self.patch_full_share else image_px

    def area_share(self, image_px: int) -> float:
        """Mean fraction of an image that a sample shows, and so its relative cost; 1 without patches."""
        if self.patch_px is None:
            return 1.0
        return self.patch_full_share + (1 - self.patch_full_share) * (self.patch_px / image_px) ** 2

    @property
    def num_averages(self) -> int:
        """Number of averages that are kept beside the weights."""
        return (self.ema_half_life is not None) + len(self.ema_lengths)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.num_samples // self.global_batch)


def check_training(stage: StageSpec, config: TrainingConfig) -> None:
    """Refuse patches, or a choice of condition, that a stage cannot be trained with.

    IRM-1 restores the identity of a whole face from a few pixels: no part of it can be restored alone.
    """
    if stage.name == "irm2" and stage.sees_input != (config.condition == "both"):
        raise UsageError(
            f"irm2 has condition={config.condition} with unet.in_channels={stage.unet.in_channels}; expected "
            "9 with both, and 6 otherwise; set irm2.stage.unet.in_channels"
        )
    if config.condition != "sampled" and stage.name != "irm2":
        raise UsageError(
            f"{stage.name} has condition={config.condition}; expected sampled, the choice is irm2's; unset it"
        )
    _check_distillation(stage, config)
    if config.patch_px is None:
        return
    if stage.name == "irm1":
        raise UsageError(
            f"irm1 has patch_px={config.patch_px}; expected none, it restores the face as a whole; unset "
            "irm1.training.patch_px"
        )
    if not 0 < config.patch_px < stage.px or config.patch_px % stage.unet.coarsest_px:
        raise UsageError(
            f"{stage.name} has patch_px={config.patch_px}; expected a multiple of {stage.unet.coarsest_px} "
            "(its "
            f"{len(stage.unet.channel_multipliers)} levels halve the side) below {stage.px}; choose another, "
            "or none for whole images"
        )


def _check_distillation(stage: StageSpec, config: TrainingConfig) -> None:
    """Refuse a student without a teacher, and one whose targets its network could not represent."""
    name = stage.name
    if stage.distilled != (config.teacher_steps is not None):
        raise UsageError(
            f"{name} has stage.distilled={stage.distilled} with "
            f"training.teacher_steps={config.teacher_steps}; expected both for a student and neither "
            "otherwise; take `diffbfr distill`"
        )
    if not stage.distilled:
        return
    if stage.predicts == "noise" and stage.start == stage.schedule.num_steps:
        raise UsageError(
            f"{name} predicts the noise and starts from noise alone, where that says nothing of the image; "
            "expected a velocity in a distilled stage; train its teacher with "
            f"{name}.stage.predicts=velocity first"
        )
    if config.min_snr_gamma is not None:
        raise UsageError(
            f"{name} is distilled and has min_snr_gamma={config.min_snr_gamma}; expected none, its loss is "
            f"already one of few steps; unset {name}.training.min_snr_gamma"
        )
