"""How a stage is trained: settings that change the result, without torch, so that a plan costs nothing."""

from dataclasses import dataclass
from typing import Literal

from diffbfr.errors import UsageError


@dataclass(frozen=True)
class TrainingConfig:
    """How a stage is trained; everything here changes the result."""

    num_samples: int
    global_batch: int
    learning_rate: float
    optimizer: Literal["adam", "adamw"] = "adam"
    warmup_samples: int = 0
    decay_samples: int = 0
    """Over the last so many samples the rate falls linearly to zero; 0 keeps it (the paper)."""
    ema_half_life: float = 50_000.0
    """In samples. Table 6's EMA of 0.999 a step at batch 64 is 44,339 samples."""
    t_max: int | None = None
    """Largest t that is trained; None is the paper's uniform 1..T, although sampling never visits t above a stage's start."""
    max_gradient_norm: float | None = None
    checkpoint_samples: int = 20_000
    average_samples: int | None = None
    """Keep the averaged weights every so many samples, for a curve over training; None keeps the last alone."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.global_batch < 1:
            raise UsageError(f"training has num_samples={self.num_samples}, global_batch={self.global_batch}; expected at least 1")
        if self.learning_rate <= 0:
            raise UsageError(f"training has learning_rate={self.learning_rate}; expected a positive number")
        if self.average_samples is not None and self.average_samples < 1:
            raise UsageError(f"training has average_samples={self.average_samples}; expected at least 1, or none to keep the last alone")
        if self.t_max is not None and self.t_max < 1:
            raise UsageError(f"training has t_max={self.t_max}; expected at least 1, or none for every step")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.num_samples // self.global_batch)
