"""A resolution-independent raster: distance fields on a pixel grid, composited with analytic anti-aliasing.

Coordinates are those of the upright face in the 512 px FFHQ frame, whatever the size of the image. Colours
are linear light (gamma 2, which a square root undoes). Pixels are computed with + - * /, square root, floor,
minimum and maximum alone, elementwise in float32: IEEE 754 fixes their results, so every processor makes the
same image. Sine, power and exponential are avoided, because their last bit differs between libraries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbfr.synthetic.attributes import FaceAttributes, from_frame, to_frame

Plane = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]


def linear(red: float, green: float, blue: float) -> Colour:
    """Display values in [0, 255] as linear light in [0, 1]."""
    red, green, blue = red / 255.0, green / 255.0, blue / 255.0
    return (red * red, green * green, blue * blue)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour `share` of the way from the first to the second."""
    a, b, c = (one + (two - one) * share for one, two in zip(first, second, strict=True))
    return (a, b, c)


def scaled(colour: Colour, factor: float) -> Colour:
    """The colour under `factor` times the light."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def clip01(values: Plane) -> Plane:
    """Limit to [0, 1]."""
    return np.minimum(np.maximum(values, np.float32(0.0)), np.float32(1.0))


def smooth(values: Plane, low: float, high: float) -> Plane:
    """Rise from 0 at `low` to 1 at `high` with flat ends (either order)."""
    t = clip01((values - low) * (1.0 / (high - low)))
    return t * t * (3.0 - 2.0 * t)


def bump(squared_radius: Plane) -> Plane:
    """A smooth hill: 1 at the centre, 0 from radius 1 on; stands in for a Gaussian."""
    inside: Plane = np.maximum(1.0 - squared_radius, np.float32(0.0))
    return inside * inside


def wave(turns: Plane) -> Plane:
    """A sine-like wave in [-1, 1] with period 1, from a cubic: portable where a library's sine is not."""
    u = turns - np.floor(turns)
    t = 4.0 * np.abs(u - 0.5) - 1.0
    rounded: Plane = t * (1.5 - 0.5 * t * t)
    return rounded


@dataclass(frozen=True)
class Window:
    """A rectangle of the canvas: views of its pixels and face coordinates, so small features are cheap."""

    x: Plane
    y: Plane
    image: Plane  # 3 h w, linear light
    pixel: float  # one picture pixel in face units

    def cover(self, distance: Plane) -> Plane:
        """The fraction of each pixel that lies inside (distance < 0), by the box of one pixel."""
        return clip01(0.5 - distance * (1.0 / self.pixel))

    def stroke(self, distance: Plane, half_width: Plane | float) -> Plane:
        """The fraction of each pixel that a line covers; a line thinner than a pixel keeps its total."""
        away = np.abs(distance)
        return self.cover(away - half_width) - self.cover(away + half_width)

    def ellipse(self, x: Plane | float, y: float, a: float, b: float) -> Plane:
        """Signed distance to an ellipse, to first order."""
        u, v = (self.x - x) * (1.0 / (a * a)), (self.y - y) * (1.0 / (b * b))
        distance: Plane = ((self.x - x) * u + (self.y - y) * v - 1.0) / (2.0 * np.sqrt(u * u + v * v) + 1e-6)
        return distance

    def hill(self, x: float, y: float, a: float, b: float) -> Plane:
        """A soft spot of half axes a, b."""
        u, v = (self.x - x) * (1.0 / a), (self.y - y) * (1.0 / b)
        return bump(u * u + v * v)

    def paint(self, coverage: Plane, colour: Colour | Plane) -> None:
        """Composite a colour (or an image [3, h, w]) over the pixels."""
        for channel in range(3):
            self.image[channel] += coverage * (colour[channel] - self.image[channel])

    def dim(self, coverage: Plane, colour: Colour) -> None:
        """Multiply the pixels by `colour` where coverage is 1."""
        for channel in range(3):
            self.image[channel] *= 1.0 - coverage * (1.0 - colour[channel])

    def glow(self, coverage: Plane, colour: Colour) -> None:
        """Add light."""
        for channel in range(3):
            self.image[channel] += coverage * colour[channel]


class Canvas:
    """A square image of `size` pixels in the pose of one face."""

    def __init__(self, face: FaceAttributes, size: int) -> None:
        self._pose = (face.roll, face.scale, face.shift)
        self._size = size
        self._unit = 512.0 / size
        origin = from_frame((0.0, 0.0), *self._pose)
        right, down = from_frame((512.0, 0.0), *self._pose), from_frame((0.0, 512.0), *self._pose)
        steps = ((np.arange(size, dtype=np.float64) + 0.5) * (1.0 / size)).astype(np.float32)
        row, column = steps[None, :], steps[:, None]
        x = origin[0] + (right[0] - origin[0]) * row + (down[0] - origin[0]) * column
        y = origin[1] + (right[1] - origin[1]) * row + (down[1] - origin[1]) * column
        self.full = Window(x, y, np.zeros((3, size, size), np.float32), self._unit / face.scale)

    def window(self, left: float, top: float, right: float, bottom: float) -> Window:
        """The part of the image that holds this rectangle of face coordinates, with a margin of a pixel."""
        rows, columns = self.slices(left, top, right, bottom)
        full = self.full
        return Window(full.x[rows, columns], full.y[rows, columns], full.image[:, rows, columns], full.pixel)

    def slices(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of the image that hold this rectangle of face coordinates."""
        corners = [
            to_frame(corner, *self._pose)
            for corner in ((left, top), (right, top), (left, bottom), (right, bottom))
        ]
        return self._slice([corner[1] for corner in corners]), self._slice([corner[0] for corner in corners])

    def _slice(self, values: list[float]) -> slice:
        first = int(min(values) / self._unit) - 1
        last = int(max(values) / self._unit) + 2
        return slice(min(max(first, 0), self._size), min(max(last, 0), self._size))

    def pixels(self, shrink: int, gray: bool) -> NDArray[np.uint8]:
        """Average `shrink` x `shrink` blocks in linear light, apply the gamma and round: uint8 [h, w, 3]."""
        image = self.full.image
        if shrink > 1:
            total = np.zeros_like(image[:, ::shrink, ::shrink])
            for row in range(shrink):
                for column in range(shrink):
                    total += image[:, row::shrink, column::shrink]
            image = total * np.float32(1.0 / (shrink * shrink))
        display = np.sqrt(clip01(image))
        if gray:
            luma = 0.299 * display[0] + 0.587 * display[1] + 0.114 * display[2]
            display = np.stack([luma, luma, luma])
        return np.ascontiguousarray(np.floor(display * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))
