"""All of a photo's faces in one call, for a worker: found, judged and aligned.

Arguments and result are plain data, so that the call can be made in a process of its own; a detector is
loaded once in each.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffbfr.faces.align import AlignedFace, Photo, align, colour_layers, fit_frame
from diffbfr.faces.choose import ChoicePolicy, Verdict, choose
from diffbfr.faces.search import QUARTERS, FaceSearch
from diffbfr.faces.transparency import alpha_of, on_mean_colour
from diffbfr.faces.weights import load_detector
from diffbfr.images import Pixels


@dataclass(frozen=True, eq=False)
class PhotoFaces:
    """The faces of a photo, the best first: a verdict for each, and its frame."""

    detector: str
    verdicts: tuple[Verdict, ...]
    aligned: tuple[AlignedFace, ...]


def find_faces(
    photo: Photo, weights: str, policy: ChoicePolicy, px: int, turns: tuple[int, ...] = QUARTERS
) -> PhotoFaces:
    """Find the faces of a photo, judge them, and align each to a frame of `px`, chosen or not.

    `weights` is the path of a detector's weights, `turns` as in `FaceSearch`. The same arguments give the
    same result in every process.
    """
    finder = _finder(weights, policy.min_eyes_px, turns)
    faces = finder.detect(detection_pixels(photo))
    verdicts = choose(photo, faces, policy)
    aligned = [align(photo, fit_frame(face.points_array), px) for face in faces]
    return PhotoFaces(finder.name, tuple(verdicts), tuple(aligned))


def detection_pixels(photo: Photo) -> Pixels:
    """What a detector sees of a photo: 8-bit RGB [h, w, 3], without what is transparent."""
    layers = colour_layers(photo) if alpha_of(photo) is None else on_mean_colour(photo)
    if layers.dtype == np.uint16:
        layers = ((layers.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(layers, (*layers.shape[:2], 3)))


@functools.lru_cache(2)
def _finder(weights: str, min_eyes_px: float, turns: tuple[int, ...]) -> FaceSearch:
    return FaceSearch(load_detector(Path(weights)), min_eyes_px, turns)
