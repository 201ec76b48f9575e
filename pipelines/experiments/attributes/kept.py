"""Whether a restoration shows an attribute: it is nearer to the face with it than to the one without."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from diffbfr.degradation import DegradationSpec, degrade, draw, sample_seed
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.images.trusted import decode_trusted
from diffbfr.keys import noise_key
from pipelines.experiments.attributes.faces import AttributePair
from pipelines.experiments.spread import NORMAL_QUANTILE

if TYPE_CHECKING:
    from diffbfr.cascade import Cascade

SUBJECTS: Final = ("lq", "irm1", "irm2", "tem")
THRESHOLD: Final = 0.5
"""Halfway from the face without the attribute to the face with it."""


@dataclass(frozen=True)
class Rate:
    """How many of `count` faces show an attribute."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """The fraction."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson 1927)."""
        z2 = NORMAL_QUANTILE**2
        middle = (self.hits + z2 / 2) / (self.count + z2)
        variance = self.hits * (self.count - self.hits) / self.count + z2 / 4
        half = NORMAL_QUANTILE * math.sqrt(variance) / (self.count + z2)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class AttributeRates:
    """Of one attribute and output: faces that have it and show it, and faces that lack it and show it."""

    attribute: str
    subject: str
    kept: Rate
    invented: Rate
    strength: float
    """Mean of `presence` over faces that have it: 1 as in the ground truth, 0 as without it."""


def presence(output: NDArray[np.uint8], present: NDArray[np.uint8], absent: NDArray[np.uint8]) -> float:
    """How far an output lies from the face without the attribute (0) to the face with it (1).

    It is the projection on their difference, so that only the pixels that differ count.
    """
    direction = present.astype(np.float64) - absent
    length = float((direction**2).sum())
    if not length:
        raise UsageError("the faces with and without the attribute are equal; expected two that differ")
    return float(((output.astype(np.float64) - absent) * direction).sum() / length)


def measure_attribute(
    cascade: "Cascade", pairs: Sequence[AttributePair], spec: DegradationSpec
) -> list[AttributeRates]:
    """Degrade, restore and judge the faces of one attribute, those with it and those without it."""
    found: dict[str, tuple[list[float], list[float]]] = {subject: ([], []) for subject in SUBJECTS}
    for pair in pairs:
        for side, face in enumerate((pair.present, pair.absent)):
            for subject, output in _restore(cascade, face, pair.seed, spec).items():
                found[subject][side].append(presence(output, pair.present, pair.absent))
    return [
        AttributeRates(pairs[0].attribute, subject, _rate(kept), _rate(invented), float(np.mean(kept)))
        for subject, (kept, invented) in found.items()
    ]


def _rate(values: Sequence[float]) -> Rate:
    return Rate(sum(value > THRESHOLD for value in values), len(values))


def _restore(cascade: "Cascade", face: Pixels, seed: int, spec: DegradationSpec) -> dict[str, Pixels]:
    """The enlarged input and every output of Algorithm 1; both faces of a pair have one degradation."""
    params = draw(spec, sample_seed(spec.digest, str(seed), 0))
    jpeg = degrade(face, replace(params, flip=False, gray=False), spec)
    lq, px = decode_trusted(jpeg), cascade.hq_px
    key = noise_key(hashlib.sha256(jpeg).hexdigest())
    made = cascade.restore(to_tensor([lq_to_model(lq, cascade.lq_px)]), [key])
    return {
        "lq": lq_to_model(lq, px),
        "irm1": resize(to_pixels(made.irm1)[0], px, "bicubic"),
        "irm2": to_pixels(made.irm2)[0],
        "tem": to_pixels(made.tem)[0],
    }
