"""A detector that needs no weights: it finds faces of five coloured dots, as a real one with all its limits."""

from collections.abc import Sequence
from math import degrees

import cv2
import numpy as np
from numpy.typing import NDArray

from diffbfr.faces.align import FRAME_POINTS
from diffbfr.faces.detect import Face, as_points
from diffbfr.faces.similarity import Similarity, fit_similarity

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))
"""Of the eyes, the nose and the corners of the mouth."""


def draw(photo: NDArray[np.uint8], to_photo: Similarity) -> None:
    """Paint a face of dots; `to_photo` maps the frame of 512 px."""
    radius = max(1, round(to_photo.scale * 24))
    for (x, y), colour in zip(to_photo(FRAME_POINTS), COLOURS, strict=True):
        cv2.circle(
            photo, (round(float(x) * 16), round(float(y) * 16)), radius * 16, colour, -1, cv2.LINE_AA, 4
        )


class DotDetector:
    """Finds faces of dots that are upright to `tolerance` degrees, with eyes of `sizes` px."""

    name = "dots"
    min_score = 0.6

    def __init__(self, sizes: tuple[float, float] = (8.0, 100.0), tolerance: float = 50.0) -> None:
        self.sizes = sizes
        self.tolerance = tolerance
        self.seen: list[tuple[int, int]] = []

    def detect(self, pixels: NDArray[np.uint8], min_score: float | None = None) -> Sequence[Face]:
        """The nearest dot of each colour to each left eye; the score falls with the turn."""
        self.seen.append(pixels.shape[:2])
        dots = [_centres(pixels, colour) for colour in COLOURS]
        if any(len(places) == 0 for places in dots):
            return []
        faces = []
        for eye in dots[0]:
            points = np.array([eye, *(p[np.linalg.norm(p - eye, axis=1).argmin()] for p in dots[1:])])
            turn = abs(degrees(fit_similarity(FRAME_POINTS, points).angle))
            eyes_px = float(np.linalg.norm(points[1] - points[0]))
            score = 0.95 - 0.2 * turn / self.tolerance
            fits = turn <= self.tolerance and self.sizes[0] * 0.9 <= eyes_px <= self.sizes[1]
            if fits and score >= (self.min_score if min_score is None else min_score):
                (left, top), (right, bottom) = points.min(0) - 0.4 * eyes_px, points.max(0) + 0.4 * eyes_px
                faces.append(Face((left, top, right, bottom), as_points(points), score))
        return sorted(faces, key=lambda face: -face.score)


def _centres(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.float64]:
    near = (np.abs(pixels.astype(int) - colour).max(2) < 90).astype(np.uint8)
    count, _, _, centres = cv2.connectedComponentsWithStats(near)
    return centres[1:count]
