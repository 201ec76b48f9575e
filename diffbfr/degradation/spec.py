"""The ranges from which the parameters of Eq. 13 are drawn, and the presets of the literature."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from diffbfr.documents import abridged, check_whole
from diffbfr.errors import UsageError

MAX_KERNEL_PX, MAX_PX = 1023, 16_384
Arithmetic: TypeAlias = Literal["integer", "float"]

RECIPES: Final[Mapping[Arithmetic, str]] = MappingProxyType(
    {"integer": "eq13-integer-1", "float": "eq13-float-1"}
)
"""Names of the arithmetic in `recipe` and `float_recipe`; a change of bytes changes the name."""


@dataclass(frozen=True)
class DegradationSpec:
    """Ranges of Eq. 13, both ends included.

    They are blur `sigma` (px), down-sampling `r`, noise `delta` (of 255) and JPEG quality `q` (integer).
    Lengths in pixels (`sigma`, `kernel_px`, `max_working_px`) hold for faces of `hq_px`; `at` scales them.
    With r < 1 the face is enlarged, to `max_working_px` at most. `gray_probability` is the paper's unnumbered
    "gray color probability"; `preset` is a label. `arithmetic` "float" is for parity with other codes and
    gives other bytes on other machines; `before` is an albumentations pipeline that runs first, as
    `pre_augment.describe_pipeline` writes it ("" for none).
    """

    sigma: tuple[float, float] = (0.1, 10.0)
    r: tuple[float, float] = (0.8, 8.0)
    delta: tuple[float, float] = (0.0, 20.0)
    q: tuple[int, int] = (60, 100)
    gray_probability: float = 0.01
    flip_probability: float = 0.5
    kernel_px: int = 41
    max_working_px: int = 640
    hq_px: int = 512
    preset: str = "paper"
    arithmetic: Arithmetic = "integer"
    before: str = ""

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, 0.0, 100.0)
        _check_range("r", self.r, 0.05, 64.0)
        _check_range("delta", self.delta, 0.0, 255.0)
        _check_range("q", self.q, 1, 100)
        if any(end != int(end) for end in self.q):
            raise UsageError(
                f"degradation q is {self.q}; expected whole numbers: libjpeg takes no other quality"
            )
        # (0, 20), [0, 20] and (0.0, 20.0) are one spec with one digest.
        for name in ("sigma", "r", "delta"):
            object.__setattr__(self, name, tuple(float(end) for end in getattr(self, name)))
        object.__setattr__(self, "q", tuple(int(end) for end in self.q))
        for name in ("gray_probability", "flip_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(
                    f"degradation {name} is {getattr(self, name)}; expected a probability in [0, 1]"
                )
        if not 1 <= self.kernel_px <= MAX_KERNEL_PX or self.kernel_px % 2 == 0:
            raise UsageError(
                f"degradation kernel_px is {abridged(self.kernel_px)}; expected an odd number of pixels, at "
                f"most {MAX_KERNEL_PX}"
            )
        if self.arithmetic not in RECIPES:
            raise UsageError(
                f"degradation arithmetic is {self.arithmetic!r}; expected one of {', '.join(RECIPES)}"
            )
        check_whole("degradation", "hq_px", self.hq_px, 1, MAX_PX)
        check_whole("degradation", "max_working_px", self.max_working_px, 1, MAX_PX)

    def at(self, hq_px: int) -> "DegradationSpec":
        """The same degradation for faces of `hq_px`: lengths in pixels scale; r, delta and q do not."""
        if hq_px < 1:
            raise UsageError(f"a face of {hq_px} px was asked for; expected at least 1 px")
        if hq_px == self.hq_px:
            return self
        scale = hq_px / self.hq_px
        return replace(
            self,
            sigma=(self.sigma[0] * scale, self.sigma[1] * scale),
            kernel_px=2 * round((self.kernel_px - 1) / 2 * scale) + 1,
            max_working_px=max(1, round(self.max_working_px * scale)),
            hq_px=hq_px,
        )

    @property
    def recipe(self) -> str:
        """Name of the arithmetic and its version."""
        return RECIPES[self.arithmetic]

    @property
    def portable(self) -> bool:
        """Whether every machine makes the same bytes; floats and albumentations do not guarantee it."""
        return self.arithmetic == "integer" and not self.before

    @property
    def digest(self) -> str:
        """Sha256 of all that changes bytes: ranges, name of the arithmetic, `before`; not the label."""
        values = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_RANGES
        }
        parts = [self.recipe, values, self.before] if self.before else [self.recipe, values]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_range(name: str, ends: object, lowest: float | int, highest: float | int) -> None:
    numbers = (
        [end if isinstance(end, int | float) else math.nan for end in ends]
        if isinstance(ends, Sequence)
        else []
    )
    if len(numbers) != 2 or not lowest <= numbers[0] <= numbers[1] <= highest:
        raise UsageError(
            f"degradation {name} is {ends}; expected (low, high) with {lowest} <= low <= high <= {highest}"
        )


_NOT_RANGES: Final = ("preset", "arithmetic", "before")

PRESETS: Final[Mapping[str, DegradationSpec]] = MappingProxyType(
    {
        spec.preset: spec
        for spec in (
            DegradationSpec(),
            DegradationSpec(preset="gfpgan"),
            DegradationSpec(preset="gpen", gray_probability=0.2),
            DegradationSpec(
                preset="codeformer", sigma=(1.0, 15.0), r=(4.0, 30.0), q=(30, 80), gray_probability=0.0
            ),
            DegradationSpec(preset="difface", sigma=(0.1, 15.0), r=(0.8, 32.0), q=(30, 100)),
        )
    }
)
"""The ranges of the literature, at 512 px.

paper: Eq. 13 of DiffBFR; gfpgan: the published training options of GFPGAN (CVPR 2021), which Eq. 13 took
over; gpen: GPEN (CVPR 2021), the same with more gray; codeformer: CodeFormer (NeurIPS 2022), the large
degradation of its stages II and III; difface: DifFace (TPAMI 2024), its restoration backbone. What these
codes do beside Eq. 13 is left out: anisotropic kernels (half of theirs), colour jitter and the gray input
with a colour target of GFPGAN, motion blur and masks; `before` can bring the like.
"""
