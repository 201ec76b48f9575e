"""Eq. 13: how a clean face becomes a low-quality one; parameters are drawn in one place and applied in
another.

`spec` says what may be drawn, `recipe` draws and applies, `noise` holds the integer normal table,
`float_recipe` is the same in floats. `before` runs a user's albumentations pipeline first; `transform` makes
all of it a transform of albumentations.
"""

from diffbfr.degradation.recipe import apply_target, degrade, draw, sample_seed
from diffbfr.degradation.spec import PRESETS, DegradationParams, DegradationSpec

__all__ = [
    "PRESETS",
    "DegradationParams",
    "DegradationSpec",
    "apply_target",
    "degrade",
    "draw",
    "sample_seed",
]
