"""Similarities of the plane: rotation, one scale and a shift, without reflection.

Points are x, y in pixels; the centre of the first pixel is (0, 0), as OpenCV counts.
"""

from dataclasses import dataclass
from math import atan2, cos, hypot, radians, sin

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Similarity:
    """(x, y) -> (a x - b y + shift_x, b x + a y + shift_y)."""

    a: float
    b: float
    shift_x: float
    shift_y: float

    @classmethod
    def of_resize(cls, factor: float) -> "Similarity":
        """The map of pixel centres when an image is resized by a factor: the outer edges stay edges."""
        return cls(factor, 0.0, (factor - 1) / 2, (factor - 1) / 2)

    @classmethod
    def of_shift(cls, x: float, y: float) -> "Similarity":
        """Add (x, y)."""
        return cls(1.0, 0.0, x, y)

    @classmethod
    def of_turn(cls, degrees: float) -> "Similarity":
        """Turn about (0, 0), from the x axis towards the y axis: clockwise as an image is seen."""
        return cls(cos(radians(degrees)), sin(radians(degrees)), 0.0, 0.0)

    @property
    def scale(self) -> float:
        """Length of the image of a unit vector."""
        return hypot(self.a, self.b)

    @property
    def angle(self) -> float:
        """The turn in radians, in (-pi, pi], clockwise as an image is seen."""
        return atan2(self.b, self.a)

    @property
    def matrix(self) -> Float64[np.ndarray, "2 3"]:
        """The affine matrix, as OpenCV takes it."""
        return np.array([[self.a, -self.b, self.shift_x], [self.b, self.a, self.shift_y]])

    def __call__(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Map points."""
        matrix = self.matrix
        mapped: np.ndarray = points @ matrix[:, :2].T + matrix[:, 2]
        return mapped

    def then(self, other: "Similarity") -> "Similarity":
        """Apply this one first and `other` to its result."""
        return Similarity(
            other.a * self.a - other.b * self.b,
            other.b * self.a + other.a * self.b,
            other.a * self.shift_x - other.b * self.shift_y + other.shift_x,
            other.b * self.shift_x + other.a * self.shift_y + other.shift_y,
        )

    def inverse(self) -> "Similarity":
        """The map back; `ZeroDivisionError` if the scale is 0."""
        square = self.a**2 + self.b**2
        a, b = self.a / square, -self.b / square
        return Similarity(a, b, b * self.shift_y - a * self.shift_x, -b * self.shift_x - a * self.shift_y)


def fit_similarity(points: Float64[np.ndarray, "n 2"], targets: Float64[np.ndarray, "n 2"]) -> Similarity:
    """The similarity that maps points to targets with the least sum of squares (Umeyama 1991, in the plane).

    Two different points at least; equal points give scale 0.
    """
    centre, target_centre = points.mean(0), targets.mean(0)
    x, y = points - centre, targets - target_centre
    square = float((x**2).sum())
    if square == 0:
        return Similarity(0.0, 0.0, float(target_centre[0]), float(target_centre[1]))
    a = float((x * y).sum()) / square
    b = float((x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum()) / square
    shift = target_centre - np.array([[a, -b], [b, a]]) @ centre
    return Similarity(a, b, float(shift[0]), float(shift[1]))
