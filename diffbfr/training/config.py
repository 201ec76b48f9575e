"""How a stage is trained: settings that change the result, without torch, so that a plan costs nothing."""

from dataclasses import dataclass
from typing import Literal

from diffbfr.errors import UsageError
from diffbfr.stages import StageSpec

LONGEST_EMA = 12**-0.5
"""The relative deviation of a power function of exponent 0, the plain mean of all weights so far."""
NON_IDENTITY_FIELDS = ("max_skipped", "checkpoint_samples", "keep_checkpoints", "keep_best")
"""The settings that say how a run is kept alive and not what comes of it: they may change between a
training and its going on.
"""


@dataclass(frozen=True)
class TrainingConfig:
    """How a stage is trained; everything here but `NON_IDENTITY_FIELDS` changes the result."""

    num_samples: int
    global_batch: int
    learning_rate: float
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    """Of either optimiser. The families that Table 6 shows decay nothing; torch's AdamW would take 0.01 if
    it were not told.
    """
    warmup_samples: int = 0
    decay_samples: int = 0
    """Over the last so many samples the rate falls linearly to zero; 0 keeps it (the paper)."""
    ema_half_life: float | None = 50_000.0
    """In samples; 0.999 a step at batch 64, as the family of TEM keeps it, is 44,339. None keeps no average,
    and the last weights are the stage's.
    """
    t_max: int | None = None
    """Largest t that is trained; None is the paper's uniform 1..T, although sampling never visits t above
    a stage's start.
    """
    condition: Literal["sampled", "resized"] = "sampled"
    """What IRM-2 sees enlarged: what IRM-1 made of the photo (Eq. 9), or the ground truth x'_0 at its size
    (Algorithm 1's resize(x'_0)).

    The second needs no column, and meets IRM-1's faults in sampling only.
    """
    gray_target: Literal["gray", "colour"] = "gray"
    """What a gray photo is restored to: the gray face, so that a gray photo stays gray, or the face in
    colour (GFPGAN).
    """
    min_snr_gamma: float | None = None
    """Weight a level's loss by min(SNR, gamma) in y_0 (Hang et al. 2023 take 5,
    `diffbfr.training.objective`); None is the paper's 1.
    """
    patch_px: int | None = None
    """Train IRM-2 or TEM on crops of this side (Wang et al. 2023, Patch Diffusion); None is the paper's whole
    images.

    The sampler sees whole images either way: the network is convolutional, and attention takes any size.
    Coordinates as input channels, which they add, are left out: Table 6 fixes the input, and a stage with
    more would not be one of it; what a coordinate says, the condition says to IRM-2 and the picture under
    little noise to TEM.
    """
    patch_full_share: float = 0.5
    """With `patch_px`, the share of the steps that see whole images: attention and borders learn their own
    scale there (their p = 0.5).
    """
    max_gradient_norm: float | None = None
    max_skipped: int = 10
    """A step whose loss or gradient is NaN or infinite changes nothing, and is logged; more of them than
    this end the run.
    """
    reduce_leaves: int | None = None
    """Compute the global batch in so many reduce_leaves, a power of two, and add their gradients in one order
    (`diffbfr.training.deterministic_reduce`): every number of workers that divides it, with as many threads
    each, then has bitwise the same weights. None leaves order to the workers, who agree to rounding, which a
    long training amplifies.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; weights, moments and averages stay in float32 (torch.autocast)."""
    checkpoint_samples: int = 20_000
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: bool = False
    """Keep that of the least training loss too, a mean over the steps since the checkpoint before: for a look
    back, its `ema.safetensors` are weights like a stage's. What goes on always goes on from the newest.
    """
    average_samples: int | None = None
    """Keep the weights, averaged if they are, every so many samples, for a curve over training; None keeps
    the last alone.
    """
    ema_lengths: tuple[float, ...] = ()
    """Keep power-function averages of these two lengths beside each of those, relative deviations such as
    0.05 and 0.10 of the samples so far, from which any other length follows after training (Karras et al.
    2024, `diffbfr.ema`).
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
        if not 0 <= self.patch_full_share < 1:
            raise UsageError(
                f"training has patch_full_share={self.patch_full_share}; expected a share in [0, 1)"
            )
        self._check_ema_lengths()

    def _check_ema_lengths(self) -> None:
        """Two lengths make a basis; without snapshots along the way there is nothing to combine."""
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
        """Side of the largest images that a step sees, of images of that side."""
        return self.patch_px if self.patch_px is not None and not self.patch_full_share else image_px

    def area_share(self, image_px: int) -> float:
        """How much of an image of that side a sample shows on the mean, and so what it costs: 1 without
        patches.
        """
        if self.patch_px is None:
            return 1.0
        return self.patch_full_share + (1 - self.patch_full_share) * (self.patch_px / image_px) ** 2

    @property
    def num_averages(self) -> int:
        """How many copies of the weights are held beside them."""
        return (self.ema_half_life is not None) + len(self.ema_lengths)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.num_samples // self.global_batch)


def check_training(stage: StageSpec, config: TrainingConfig) -> None:
    """Refuse what a stage cannot be trained with: patches that it cannot take, and a choice of condition
    where it has none.

    IRM-1 makes the whole face's identity out of a few pixels: no part of it can be restored alone.
    """
    if config.condition != "sampled" and stage.name != "irm2":
        raise UsageError(
            f"{stage.name} has condition={config.condition}; expected sampled, the choice is irm2's; unset it"
        )
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
