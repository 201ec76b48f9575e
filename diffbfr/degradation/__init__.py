"""Eq. 13: how a clean face becomes a low-quality one. Parameters are drawn first and applied separately.

`spec` defines their ranges, `recipe` draws and applies them, `noise` holds the integer normal table, and
`float_recipe` is the same in floats. `pre_augment` runs a user's albumentations pipeline first; `transform`
offers all of it as a transform of albumentations.
"""

from diffbfr.degradation.recipe import degrade, draw, sample_seed
from diffbfr.degradation.spec import PRESETS, DegradationSpec
from diffbfr.variant import DegradationParams, apply_target

__all__ = [
    "PRESETS",
    "DegradationParams",
    "DegradationSpec",
    "apply_target",
    "degrade",
    "draw",
    "sample_seed",
]
