"""A found face, and the protocol of what finds faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import dist, sqrt
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from diffbfr.faces.similarity import Similarity
from diffbfr.images import Pixels

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """A face in an image; x and y in pixels, the centre of the first pixel is (0, 0).

    `box` is left, top, right, bottom. `points` are the two eyes, the tip of the nose and the corners of the
    mouth, of an upright face from left to right as seen. `score` is in [0, 1] and compares faces of one
    detector only.
    """

    box: tuple[float, float, float, float]
    points: tuple[Point, Point, Point, Point, Point]
    score: float

    @property
    def eyes_px(self) -> float:
        """The distance between the eyes."""
        return dist(self.points[0], self.points[1])

    @property
    def side(self) -> float:
        """The geometric mean of the sides of the box."""
        left, top, right, bottom = self.box
        return sqrt(max(right - left, 0.0) * max(bottom - top, 0.0))

    @property
    def points_array(self) -> Float64[np.ndarray, "5 2"]:
        """The points as an array."""
        return np.array(self.points, dtype=np.float64)

    def moved(self, by: Similarity) -> "Face":
        """The face in an image that `by` maps this one to.

        The box is that of the ellipse within the box, mapped: it neither grows with two turns nor by quarter
        turns.
        """
        left, top, right, bottom = self.box
        ((x, y),) = by(np.array([[(left + right) / 2, (top + bottom) / 2]]))
        half_width, half_height = (right - left) / 2, (bottom - top) / 2
        across = float(np.hypot(by.a * half_width, by.b * half_height))
        down = float(np.hypot(by.b * half_width, by.a * half_height))
        return Face(
            (float(x) - across, float(y) - down, float(x) + across, float(y) + down),
            as_points(by(self.points_array)),
            self.score,
        )


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces in one image: an implementation, or a search that calls one on many views."""

    @property
    def name(self) -> str:
        """Name and version of the detector, for records."""
        ...

    @property
    def sizes(self) -> tuple[float, float]:
        """The eye distances (px) between which upright faces are found in one call."""
        ...

    @property
    def min_score(self) -> float:
        """The score from which a find counts."""
        ...

    def detect(self, pixels: Pixels, min_score: float | None = None) -> Sequence[Face]:
        """Faces of an image (uint8 h w 3, RGB), the best first; `min_score` replaces the detector's own."""
        ...


def as_points(points: Float64[np.ndarray, "5 2"]) -> tuple[Point, Point, Point, Point, Point]:
    """Five rows as tuples."""
    first, second, nose, left, right = ((float(x), float(y)) for x, y in points)
    return first, second, nose, left, right


def is_same(one: Face, other: Face) -> bool:
    """Whether two boxes are of one face: they share 0.4 of what both cover, or 0.65 of the smaller one."""
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    if width <= 0 or height <= 0:
        return False
    shared, areas = width * height, (one.side**2, other.side**2)
    return shared > 0.4 * (sum(areas) - shared) or shared > 0.65 * min(areas)


def without_repeats(faces: Sequence[Face]) -> list[Face]:
    """The faces, the best first, without those that repeat a better one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, face.box)):
        if not any(is_same(face, better) for better in kept):
            kept.append(face)
    return kept
