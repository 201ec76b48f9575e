"""An aligned face crop as the cascade takes it, decoded and reduced in a process of its own.

Only what the cascade and the output need comes back to the worker: a few kilobytes, whatever the photo takes.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from diffbfr.images import Pixels, decode, lq_to_model, resize_alpha
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed, warm_up

MIN_INPUT_PX: Final = 8
MAX_PIXELS: Final = 100_000_000
_MAX_DPI: Final = 1e6


@dataclass(frozen=True, eq=False)
class Kept:
    """What an output takes over from its input: profile, EXIF of date and camera, density, opacity (h w)."""

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    alpha: Pixels | None = None

    def __post_init__(self) -> None:
        _check_array(self.alpha, 2)
        if self.dpi is not None and not all(0 < value < _MAX_DPI for value in self.dpi):
            raise ValueError("the density is out of range")


@dataclass(frozen=True, eq=False)
class FaceInput:
    """The size of the photo, its pixels as the cascade takes them (uint8 lq lq 3), and what an output keeps.

    `notes` says in sentences what was left out.
    """

    width: int
    height: int
    pixels: Pixels
    kept: Kept = field(default_factory=Kept)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # it may come from a process that decoded a hostile file, and arrays are rebuilt unchecked
        _check_array(self.pixels, 3)


def read_face(data: bytes, lq_px: int, hq_px: int, max_pixels: int = MAX_PIXELS) -> FaceInput:
    """Decode a square face crop and resize its opacity to the output; `ImageRefused` if it has no use."""
    decoded = decode(data, max_pixels=max_pixels, min_px=MIN_INPUT_PX)
    height, width = decoded.pixels.shape[:2]
    small = lq_to_model(decoded.pixels, lq_px)
    alpha = None if decoded.alpha is None else resize_alpha(decoded.alpha, hq_px)
    return FaceInput(width, height, small, Kept(decoded.icc, decoded.exif, decoded.dpi, alpha), decoded.notes)


def read_face_sandboxed(
    data: bytes, lq_px: int, hq_px: int, max_pixels: int = MAX_PIXELS
) -> FaceInput | WorkerFailure:
    """Return `read_face` from this thread's child process, or why that has no result."""
    found = run_sandboxed(read_face, data, lq_px, hq_px, max_pixels, returns=FaceInput)
    if isinstance(found, FaceInput) and found.pixels.shape != (lq_px, lq_px, 3):
        return WorkerFailure("crashed", f"it returned pixels of the shape {found.pixels.shape}")
    return found


def start_reader() -> None:
    """Start this thread's child process ahead of the first photo."""
    warm_up(read_face)


def _check_array(found: object, num_dimensions: int) -> None:
    if found is not None and not (
        isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == num_dimensions
    ):
        raise TypeError("an array is not of bytes, or of another shape")
