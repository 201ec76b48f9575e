"""A whole photo with its faces, decoded, searched, judged and aligned in a process of its own.

The pixels come back to the worker only if something of them changes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from diffbfr.faces.align import Frame
from diffbfr.faces.choose import ChoicePolicy, Verdict, gray_frame
from diffbfr.faces.detail import kept_detail
from diffbfr.faces.photo import PhotoFaces, find_faces
from diffbfr.images import ImageRefused, Pixels
from diffbfr.images.photo import PhotoPixels, SourcePhoto, read_photo
from pipelines.restoration.face_input import MAX_PIXELS, MIN_INPUT_PX
from pipelines.restoration.photo_output import check_holds, written_format
from pipelines.restoration.request import PhotoSettings
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed, warm_up

WHOLE_SECONDS: Final = 300.0
"""For a photo of the largest size, searched at all of its scales."""


@dataclass(frozen=True, eq=False)
class WholeInput:
    """A photo and its faces, the highest score first.

    `photo` is None if the output is the file as it is: no face was chosen, and neither its size nor its
    format was to be changed. `crops` are the chosen faces in the order of `verdicts`, uint8 [lq, lq, 3].
    `notes` says in sentences what was left out. `details` is how much detail each chosen face kept, empty if
    that was not asked for.
    """

    width: int
    height: int
    photo: SourcePhoto | None
    verdicts: tuple[Verdict, ...]
    frames: tuple[Frame, ...]
    crops: tuple[Pixels, ...]
    notes: tuple[str, ...]
    details: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # it may come from a process that decoded a hostile file, and arrays are rebuilt unchecked
        chosen = sum(verdict.is_chosen for verdict in self.verdicts)
        if len(self.frames) != len(self.verdicts) or len(self.crops) != chosen:
            raise ValueError("it has another number of frames or crops than of faces")
        if self.details and (len(self.details) != chosen or not all(0 <= it <= 1 for it in self.details)):
            raise ValueError("it has another number of details than of faces, or one out of range")
        for crop in self.crops:
            if not isinstance(crop, np.ndarray) or crop.dtype != np.uint8 or crop.ndim != 3:
                raise TypeError("a crop is not of bytes, or of another shape")
        if self.crops and self.photo is None:
            raise ValueError("it has faces and no pixels")


def read_whole(data: bytes, detector: str, settings: PhotoSettings, lq_px: int, hq_px: int) -> WholeInput:
    """Decode a photo, find its faces and align those to be restored; `ImageRefused` if it has no use."""
    photo = read_photo(
        data,
        max_pixels=MAX_PIXELS,
        min_px=MIN_INPUT_PX,
        metadata="all" if settings.keep_metadata else "date",
    )
    height, width = photo.pixels.shape[:2]
    _check_size(width, height, settings.upscale)
    file_format = written_format(photo.format, settings.file_format or None)
    check_holds(photo, file_format, settings.upscale)
    if settings.upscale > 1 and settings.upscaler != "bicubic" and photo.bits > 8:
        raise ImageRefused(
            "unsupported_pixels",
            f"the photo has {photo.bits} bits a channel, and {settings.upscaler} makes 8; leave --upscaler "
            "out",
        )
    policy = ChoicePolicy(
        model_px=hq_px,
        min_eyes_px=settings.min_face,
        any_size=settings.any_size,
        only_center=settings.only == "center",
        only_largest=settings.only == "largest",
    )
    found = find_faces(photo.pixels, detector, policy, lq_px)
    details = _details(photo.pixels, found, hq_px) if settings.adaptive else ()
    faces = list(zip(found.verdicts, found.aligned, strict=True))
    crops = tuple(aligned.pixels for verdict, aligned in faces if verdict.is_chosen)
    is_kept = not crops and settings.upscale == 1 and (not settings.file_format or _is(photo, file_format))
    return WholeInput(
        width,
        height,
        None if is_kept else photo,
        found.verdicts,
        tuple(aligned.frame for aligned in found.aligned),
        crops,
        () if is_kept else photo.notes,
        details,
    )


def _details(pixels: PhotoPixels, found: PhotoFaces, hq_px: int) -> tuple[float, ...]:
    """How much detail each face to be restored kept."""
    return tuple(
        kept_detail(gray_frame(pixels, aligned.frame, hq_px))
        for verdict, aligned in zip(found.verdicts, found.aligned, strict=True)
        if verdict.is_chosen
    )


def read_whole_sandboxed(
    data: bytes, detector: Path, settings: PhotoSettings, lq_px: int, hq_px: int
) -> WholeInput | WorkerFailure:
    """Return `read_whole` from this thread's child process, or why that has no result."""
    found = run_sandboxed(
        read_whole, data, str(detector), settings, lq_px, hq_px, returns=WholeInput, seconds=WHOLE_SECONDS
    )
    if isinstance(found, WholeInput) and any(crop.shape != (lq_px, lq_px, 3) for crop in found.crops):
        return WorkerFailure("crashed", "it returned crops of another shape")
    return found


def start_whole_reader() -> None:
    """Start this thread's child process ahead of the first photo."""
    warm_up(read_whole)


def _is(photo: SourcePhoto, file_format: str) -> bool:
    return photo.format.lower() == file_format


def _check_size(width: int, height: int, upscale: int) -> None:
    if width * height * upscale**2 > MAX_PIXELS:
        raise ImageRefused(
            "too_many_pixels",
            f"--upscale {upscale} makes {width * upscale} x {height * upscale} pixels of {width} x {height}; "
            f"expected at most {MAX_PIXELS / 1e6:.0f} million; choose a smaller --upscale",
        )
