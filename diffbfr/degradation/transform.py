"""The albumentations door: Eq. 13 as one transform of an `A.Compose`.

Nothing else imports this module, because albumentations takes seconds to import.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

# Without this, importing albumentations asks PyPI for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

from diffbfr.degradation.recipe import degrade, draw
from diffbfr.degradation.spec import PRESETS, DegradationSpec
from diffbfr.images import Pixels, decode, resize
from diffbfr.variant import DegradationParams


class BlindFaceDegradation(A.ImageOnlyTransform):  # type: ignore[misc] # albumentations is untyped
    """Replace a square uint8 face by its Eq. 13 degradation, brought back to the face's own size.

    `spec` scales itself to the face. It never flips, whatever `flip_probability` says: a flip belongs to
    every target of a `Compose`, so put `A.HorizontalFlip` before it. The draw comes from the pipeline's own
    seed and is reported among the applied parameters.
    """

    class InitSchema(A.BasicTransform.InitSchema):  # type: ignore[misc]
        """What albumentations checks before `__init__`; a mapping is what a saved pipeline holds."""

        spec: DegradationSpec | Mapping[str, Any]

    def __init__(self, spec: DegradationSpec | Mapping[str, Any] = PRESETS["paper"], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.spec = spec if isinstance(spec, DegradationSpec) else _read_back(spec)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw sigma, r, delta, q, gray and the noise's seed for this face."""
        seed = self.py_random.getrandbits(128).to_bytes(16, "little")
        return asdict(replace(draw(self.spec.at(params["shape"][0]), seed), flip=False))

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        """Degrade with the drawn parameters, decode, and resize to the face's size."""
        drawn = DegradationParams(**{name: params[name] for name in DegradationParams.__dataclass_fields__})
        low = decode(degrade(np.ascontiguousarray(img), drawn, self.spec.at(img.shape[0]))).pixels
        return resize(low, img.shape[0], "bilinear")

    def get_transform_init_args(self) -> dict[str, Any]:
        """Return the spec as plain values, so that a pipeline can be saved as JSON and read back."""
        return {"spec": asdict(self.spec)}


def _read_back(saved: Mapping[str, Any]) -> DegradationSpec:
    """Build a spec from a saved pipeline, where JSON has turned tuples into lists."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
    }
    return DegradationSpec(**values)
