"""What Eq. 13 may draw (`DegradationSpec`) and what one draw is (`DegradationParams`)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Final

from diffbfr.errors import UsageError

RECIPE: Final = "eq13-integer-1"
"""Name of the arithmetic in `recipe`; it changes whenever the same parameters would give other bytes."""


@dataclass(frozen=True)
class DegradationSpec:
    """Ranges of Eq. 13, both ends included: blur `sigma` (px), down-sampling `r`, noise `delta` (of 255), JPEG quality `q` (integer).

    Lengths in pixels (`sigma`, `kernel_px`, `max_working_px`) hold for faces of `hq_px`; `at` scales them. With r < 1 the face is
    enlarged, to `max_working_px` at most. `gray_probability` is the paper's unnumbered "gray color probability"; `preset` is a label.
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

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma, 0.0, 100.0)
        _check_range("r", self.r, 0.05, 64.0)
        _check_range("delta", self.delta, 0.0, 255.0)
        _check_range("q", self.q, 1, 100)
        if any(end != int(end) for end in self.q):
            raise UsageError(f"degradation q is {self.q}; expected whole numbers: libjpeg takes no other quality")
        for name in ("sigma", "r", "delta"):  # (0, 20), [0, 20] and (0.0, 20.0) are one spec with one digest
            object.__setattr__(self, name, tuple(float(end) for end in getattr(self, name)))
        object.__setattr__(self, "q", tuple(int(end) for end in self.q))
        for name in ("gray_probability", "flip_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"degradation {name} is {getattr(self, name)}; expected a probability in [0, 1]")
        if self.kernel_px < 1 or self.kernel_px % 2 == 0:
            raise UsageError(f"degradation kernel_px is {self.kernel_px}; expected an odd number of pixels")
        if self.hq_px < 1 or self.max_working_px < 1:
            raise UsageError(f"degradation hq_px is {self.hq_px} and max_working_px {self.max_working_px}; expected at least 1")

    def at(self, hq_px: int) -> "DegradationSpec":
        """Return the same degradation for faces of `hq_px`: lengths in pixels scale, r, delta and q do not."""
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
    def digest(self) -> str:
        """Return the sha256 of everything that changes bytes: the ranges and the arithmetic's name, not the label."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "preset"}
        return hashlib.sha256(json.dumps([RECIPE, values], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DegradationParams:
    """One draw of Eq. 13: everything that `degrade` needs beside the face; `sigma` in pixels of the face it was drawn for.

    `noise_seed` has 63 bits, so that it fits a signed column of a table.
    """

    sigma: float
    r: float
    delta: float
    q: int
    gray: bool
    flip: bool
    noise_seed: int


def _check_range(name: str, ends: object, lowest: float | int, highest: float | int) -> None:
    numbers = [end if isinstance(end, int | float) else math.nan for end in ends] if isinstance(ends, Sequence) else []
    if len(numbers) != 2 or not lowest <= numbers[0] <= numbers[1] <= highest:
        raise UsageError(f"degradation {name} is {ends}; expected (low, high) with {lowest} <= low <= high <= {highest}")


PRESETS: Final[Mapping[str, DegradationSpec]] = MappingProxyType({"paper": DegradationSpec()})
"""Named specs at 512 px; "paper" is Eq. 13."""
