"""Search a whole photo: small and large faces, heads turned by any angle, no face twice.

A detector sees faces of some sizes, and places the points well on upright heads only. So the photo is halved
until its longest side is small, and each of these levels is looked at upright and by quarter turns. Each
find is looked at again on a crop that is turned upright by its points; the best of these crops decides score
and points, and a find that no crop confirms is dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import degrees
from typing import Final

import numpy as np

from diffbfr.faces.align import FRAME_POINTS
from diffbfr.faces.detect import Face, FaceDetector, is_same, without_repeats
from diffbfr.faces.similarity import Similarity, fit_similarity
from diffbfr.faces.warp import warp
from diffbfr.images import Pixels

TILE_PX: Final = 1600
"""Longest side of what is looked at in one call, a bound of memory; larger levels are cut into tiles."""
CROP_PX: Final = 160
CROP_SHARE: Final = 0.6
"""Share of the box in the side of the crop of the second look.

YuNet's points are best on boxes of about 100 px: a mean error of 0.05 eye distances, 0.07 on boxes of 72 or
of 140 px."""
FIRST_SCORE: Final = 0.75
"""Share of the score asked for that a find of the first look needs."""
UPRIGHT_DEGREES: Final = 10.0
"""A crop whose face is turned by less is not made again."""
QUARTERS: Final = (0, 90, 180, 270)


@dataclass(frozen=True)
class View:
    """A part of the photo, maybe smaller and turned, and the map of its pixels to the photo's."""

    pixels: Pixels
    to_photo: Similarity


@dataclass(frozen=True)
class FaceSearch:
    """A detector for whole photos made from one for images; itself a `FaceDetector`.

    `min_eyes_px` is the smallest eye distance wanted: the levels that show smaller faces only are left out.
    `turns` are the angles by which the photo is looked at, quarter turns only.
    """

    detector: FaceDetector
    min_eyes_px: float = 8.0
    turns: Sequence[int] = QUARTERS

    @property
    def name(self) -> str:
        """The detector's; the search's own code is recorded with the program's version."""
        return self.detector.name

    @property
    def sizes(self) -> tuple[float, float]:
        """The smallest eye distance of the detector, and no largest."""
        return self.detector.sizes[0], float("inf")

    @property
    def min_score(self) -> float:
        """The detector's."""
        return self.detector.min_score

    def detect(self, pixels: Pixels, min_score: float | None = None) -> Sequence[Face]:
        """Faces of a photo (uint8 h w 3, RGB), the best first."""
        wanted = self.min_score if min_score is None else min_score
        finds: list[Face] = []
        for view in self._views(pixels):
            seen = self.detector.detect(view.pixels, wanted * FIRST_SCORE)
            finds += [face.moved(view.to_photo) for face in seen]
        confirmed = [self._confirm(pixels, group, wanted) for group in _groups(finds)]
        return without_repeats([face for face in confirmed if face is not None])

    def _views(self, photo: Pixels) -> Iterator[View]:
        smallest, largest = self.detector.sizes
        for level in _levels(photo, self.min_eyes_px / smallest, 2 * largest):
            for tile in _tiles(level):
                for turn in self.turns:
                    yield _turned(tile, turn)

    def _confirm(self, photo: Pixels, group: Sequence[Face], min_score: float) -> Face | None:
        """The best of the second looks at the finds of one face; None below the score."""
        best: Face | None = None
        looked_at: list[float] = []
        for find in group:
            angle = upright_turn(find)
            if any(abs(_between(angle, other)) < 2 * UPRIGHT_DEGREES for other in looked_at):
                continue
            looked_at.append(angle)
            face = self._look_again(photo, find, min_score * FIRST_SCORE)
            if face is not None and (best is None or face.score > best.score):
                best = face
        return best if best is not None and best.score >= min_score else None

    def _look_again(self, photo: Pixels, find: Face, min_score: float) -> Face | None:
        """The face on a crop turned upright by its points, and again until it is upright."""
        face = find
        for _ in range(3):
            view = _crop(photo, face)
            seen = [other.moved(view.to_photo) for other in self.detector.detect(view.pixels, min_score)]
            here = [other for other in seen if is_same(other, face)]
            if not here:
                return None
            turned = abs(_between(upright_turn(here[0]), upright_turn(face)))
            face = here[0]
            if turned < UPRIGHT_DEGREES:
                break
        return face


def upright_turn(face: Face) -> float:
    """Degrees by which the head is turned in its image, by all five points; clockwise as seen."""
    return degrees(fit_similarity(FRAME_POINTS, face.points_array).angle)


def _between(one: float, other: float) -> float:
    """The difference of two angles in degrees, in [-180, 180)."""
    return (one - other + 180) % 360 - 180


def _groups(finds: Sequence[Face]) -> list[list[Face]]:
    """The finds of each face, the best first."""
    groups: list[list[Face]] = []
    for find in sorted(finds, key=lambda face: (-face.score, face.box)):
        home = next((group for group in groups if is_same(group[0], find)), None)
        if home is None:
            groups.append([find])
        else:
            home.append(find)
    return groups


def _levels(photo: Pixels, largest_reduction: float, coarsest_px: float) -> Iterator[View]:
    """The photo, halved until its longest side is at most `coarsest_px`: a close-up's eyes are half of that
    apart.

    Levels that are finer than `largest_reduction` asks are left out.
    """
    import cv2

    view = View(photo, Similarity.of_resize(1.0))
    while True:
        height, width = view.pixels.shape[:2]
        is_last = max(height, width) <= coarsest_px or min(height, width) < 4
        if is_last or view.to_photo.scale * 2 > largest_reduction:
            yield view
        if is_last:
            return
        even = view.pixels[: height // 2 * 2, : width // 2 * 2]
        size = (width // 2, height // 2)
        halved = np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)
        view = View(halved, Similarity.of_resize(2.0).then(view.to_photo))


def _tiles(level: View) -> Iterator[View]:
    """Parts that overlap by a quarter, so that a face up to that size lies in one of them whole."""
    height, width = level.pixels.shape[:2]
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            shift = Similarity.of_shift(left, top).then(level.to_photo)
            yield View(level.pixels[top:bottom, left:right], shift)


def _spans(length: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start + TILE_PX < length:
        yield start, start + TILE_PX
        start += TILE_PX * 3 // 4
    yield start, length


def _turned(view: View, turn: int) -> View:
    """The view turned by quarters, so that a head turned clockwise by `turn` degrees stands upright in it."""
    height, width = view.pixels.shape[:2]
    shifts = {0: (0, 0), 90: (width - 1, 0), 180: (width - 1, height - 1), 270: (0, height - 1)}
    to_view = Similarity.of_turn(turn).then(Similarity.of_shift(*shifts[turn]))
    exact = replace(to_view, a=round(to_view.a), b=round(to_view.b))
    pixels = np.ascontiguousarray(np.rot90(view.pixels, turn // 90))
    return View(pixels, exact.then(view.to_photo))


def _crop(photo: Pixels, face: Face) -> View:
    """A square around the box, turned upright by the points."""
    left, top, right, bottom = face.box
    side = face.side / CROP_SHARE
    middle = (CROP_PX - 1) / 2
    to_photo = (
        Similarity.of_shift(-middle, -middle)
        .then(Similarity(side / CROP_PX, 0.0, 0.0, 0.0))
        .then(Similarity.of_turn(upright_turn(face)))
        .then(Similarity.of_shift((left + right) / 2, (top + bottom) / 2))
    )
    return View(np.rint(warp(photo, to_photo, CROP_PX, CROP_PX)).astype(np.uint8), to_photo)
