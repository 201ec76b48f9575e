"""Align a face to the FFHQ frame: a robust similarity by five points, and the frame's pixels.

A frame of 512 px is the unit: a `Frame` maps its pixels to the photo's, and `Frame.at` does so for a frame of
any other size. Where the frame reaches beyond the photo its pixels are mirrored and not valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.detect import Face
from diffbfr.faces.similarity import Similarity, fit_similarity
from diffbfr.faces.transparency import alpha_of, warp_seen
from diffbfr.faces.warp import warp
from diffbfr.images import Pixels
from diffbfr.synthetic.attributes import FFHQ_LANDMARKS

Photo = NDArray[Any]
"""Gray [h, w], gray and alpha [h, w, 2], RGB [h, w, 3] or RGBA [h, w, 4], uint8 or uint16."""

FRAME_PX: Final = 512
FRAME_POINTS: Final[Float64[np.ndarray, "5 2"]] = np.array(FFHQ_LANDMARKS)
FRAME_EYES_PX: Final = float(np.linalg.norm(FRAME_POINTS[1] - FRAME_POINTS[0]))
FOUR_OF_FIVE: Final = ((1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 2, 4), (0, 1, 2, 3))
"""The points that are left without each one of the five."""
OUTLIER: Final = 0.3
"""Eye distances by which a point must miss what the other four say before it is left out."""
OUTLIER_GAIN: Final = 0.5
"""And the share of the residual that may be left without it."""


@dataclass(frozen=True)
class Frame:
    """Where the FFHQ frame of a face lies in a photo.

    `to_photo` maps pixels of the frame of 512 px to the photo's; `residual` is the root mean square error of
    the points used, in eye distances; `left_out` the index of a point that the others contradict.
    """

    to_photo: Similarity
    residual: float = 0.0
    left_out: int | None = None

    @property
    def scale(self) -> float:
        """Pixels of the photo for one of the frame of 512 px."""
        return self.to_photo.scale

    def at(self, px: int) -> Similarity:
        """From the pixels of a frame of `px` to the photo's."""
        return Similarity.of_resize(FRAME_PX / px).then(self.to_photo)

    def enlarged(self, factor: int) -> "Frame":
        """The frame in the photo enlarged by a factor."""
        to_photo = self.to_photo.then(Similarity.of_resize(factor))
        return Frame(to_photo, self.residual, self.left_out)


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A frame's pixels (uint8 [px, px, 3], RGB) and which of them the photo holds.

    `quad` has the corners of the photo in pixels of the frame, clockwise from the upper left: what lies
    inside both is valid.
    """

    pixels: Pixels
    frame: Frame
    quad: Float64[np.ndarray, "4 2"]
    valid: Bool[np.ndarray, "px px"]


def fit_frame(points: Float64[np.ndarray, "5 2"]) -> Frame:
    """The frame of a face by its five points, the least squares of all or of all but one.

    One point is left out if it misses the fit of the other four by 0.3 eye distances and that fit halves the
    error: a covered corner of the mouth, or the nose of a turned head. Every choice is tried, so that one
    point may be anywhere; two bad ones of five cannot be told from three. `UsageError` if the points are one.
    """
    fits = [_fit(points, list(chosen)) for chosen in (range(5), *FOUR_OF_FIVE)]
    best = min(range(1, 6), key=lambda i: fits[i].residual)
    missed = np.linalg.norm(fits[best].to_photo.inverse()(points) - FRAME_POINTS, axis=1) / FRAME_EYES_PX
    if missed[best - 1] > OUTLIER and fits[best].residual < OUTLIER_GAIN * fits[0].residual:
        return Frame(fits[best].to_photo, fits[best].residual, best - 1)
    return fits[0]


def align(photo: Photo, frame: Frame, px: int) -> AlignedFace:
    """The pixels of a frame, `px` x `px`: bilinear where the photo is enlarged, averaged where it shrinks.

    What is transparent has the colours around it (`diffbfr.faces.transparency`).
    """
    layers = colour_layers(photo)
    plain = alpha_of(photo) is None
    sampled = warp(layers, frame.at(px), px, px) if plain else warp_seen(photo, frame.at(px), px, px)
    pixels = np.clip(np.rint(sampled * (255 / np.iinfo(photo.dtype).max)), 0, 255).astype(np.uint8)
    height, width = layers.shape[:2]
    edges = [(-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)]
    return AlignedFace(
        np.ascontiguousarray(np.broadcast_to(pixels, (px, px, 3))),
        frame,
        frame.at(px).inverse()(np.array(edges)),
        _inside(frame.at(px), px, height, width),
    )


def aligned_faces(photo: Photo, faces: Sequence[Face], px: int) -> list[AlignedFace]:
    """Each face of a photo in its frame of `px`, in the order given; without randomness and without torch."""
    return [align(photo, fit_frame(face.points_array), px) for face in faces]


def colour_layers(photo: Photo) -> NDArray[Any]:
    """The photo's gray or RGB as [h, w, 1] or [h, w, 3], a view without alpha; `UsageError` otherwise."""
    layers = photo[..., None] if photo.ndim == 2 else photo
    if layers.ndim != 3 or layers.shape[2] not in (1, 2, 3, 4) or photo.dtype not in (np.uint8, np.uint16):
        raise UsageError(
            f"the photo is {photo.dtype} {photo.shape}; expected uint8 or uint16 with 1 to 4 channels"
        )
    return layers[..., : 1 if layers.shape[2] < 3 else 3]


def _fit(points: Float64[np.ndarray, "5 2"], chosen: list[int]) -> Frame:
    to_frame = fit_similarity(points[chosen], FRAME_POINTS[chosen])
    if to_frame.scale == 0:
        raise UsageError(f"the five points of a face are {points.tolist()}; expected five different ones")
    missed = to_frame(points[chosen]) - FRAME_POINTS[chosen]
    return Frame(to_frame.inverse(), float(np.sqrt((missed**2).sum(1).mean())) / FRAME_EYES_PX)


def _inside(to_photo: Similarity, px: int, height: int, width: int) -> Bool[np.ndarray, "px px"]:
    """Which pixels of the frame have their centre within the photo."""
    y, x = np.mgrid[:px, :px].astype(np.float64)
    across = to_photo.a * x - to_photo.b * y + to_photo.shift_x
    down = to_photo.b * x + to_photo.a * y + to_photo.shift_y
    inside: NDArray[np.bool_] = (
        (across >= -0.5) & (across <= width - 0.5) & (down >= -0.5) & (down <= height - 0.5)
    )
    return inside
