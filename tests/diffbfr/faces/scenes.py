"""Whole photos with faces at known places: cut-out faces of the FFHQ frame on procedural backgrounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from diffbfr.faces.align import FRAME_POINTS, FRAME_PX
from diffbfr.faces.similarity import Similarity
from diffbfr.faces.warp import warp

Pixels = NDArray[np.uint8]

HEAD = (256.0, 262.0, 170.0, 236.0)
"""Centre and half axes of the ellipse of a head in the frame of 512 px."""


@dataclass(frozen=True)
class Placed:
    """A face to put into a scene: frame pixels [512, 512, 3], the place of its middle, eye distance in px and
    turn in degrees, clockwise.
    """

    pixels: Pixels
    x: float
    y: float
    eyes_px: float
    turn: float = 0.0

    @property
    def to_scene(self) -> Similarity:
        """From the frame of 512 px to the scene."""
        scale = self.eyes_px / float(np.linalg.norm(FRAME_POINTS[1] - FRAME_POINTS[0]))
        turned = (
            Similarity.of_shift(-HEAD[0], -HEAD[1])
            .then(Similarity(scale, 0.0, 0.0, 0.0))
            .then(Similarity.of_turn(self.turn))
        )
        return turned.then(Similarity.of_shift(self.x, self.y))

    @property
    def points(self) -> NDArray[np.float64]:
        """The five points in the scene, if the face is aligned to the frame."""
        return self.to_scene(FRAME_POINTS)


def background(height: int, width: int, seed: int) -> Pixels:
    """A picture without faces: coloured 1/f noise under boxes, discs and lines."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    decay = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    planes = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(decay.shape))
        plane = np.fft.irfft2(decay * phase, s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    mixed = np.stack(planes, 2) @ (np.full((3, 3), 0.7) + 0.6 * np.eye(3))
    picture = np.clip(mixed * 22 + generator.uniform(70, 180, 3), 0, 255).astype(np.uint8)
    for _ in range(height * width // 12_000):
        x, y = int(generator.integers(width)), int(generator.integers(height))
        size = int(generator.integers(5, max(6, min(height, width) // 5)))
        colour = [int(level) for level in generator.integers(0, 256, 3)]
        kind = generator.integers(3)
        if kind == 0:
            cv2.rectangle(picture, (x, y), (x + size, y + size * 2), colour, int(generator.choice([-1, 2])))
        elif kind == 1:
            cv2.circle(picture, (x, y), size // 2, colour, int(generator.choice([-1, 3])), cv2.LINE_AA)
        else:
            cv2.line(picture, (x, y), (x + size, y - size), colour, 2, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), 0.7)


def compose(scene: Pixels, faces: Sequence[Placed]) -> Pixels:
    """Lay the heads over a scene in the order given; parts beyond its border are cut off."""
    canvas = scene.astype(np.float32)
    height, width = scene.shape[:2]
    x, y = np.meshgrid(np.arange(FRAME_PX), np.arange(FRAME_PX))
    away = np.hypot((x - HEAD[0]) / HEAD[2], (y - HEAD[1]) / HEAD[3])
    head = np.clip((1 - away) * 12, 0, 1).astype(np.float32)[..., None]
    for face in faces:
        corners = face.to_scene(np.array([[0.0, 0], [512, 0], [0, 512], [512, 512]]))
        left, top = (max(0, int(edge)) for edge in np.floor(corners.min(0)))
        right, bottom = np.minimum(np.ceil(corners.max(0)) + 1, (width, height)).astype(int).tolist()
        if right <= left or bottom <= top:
            continue
        to_frame = Similarity.of_shift(left, top).then(face.to_scene.inverse())
        layers = np.concatenate(
            [face.pixels.astype(np.float32), np.pad(head[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)))], 2
        )
        laid = warp(layers, to_frame, bottom - top, right - left)
        inside = _inside_frame(to_frame, bottom - top, right - left)
        share = laid[..., 3:] * inside[..., None]
        part = canvas[top:bottom, left:right]
        part += share * (laid[..., :3] - part)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _inside_frame(to_frame: Similarity, height: int, width: int) -> NDArray[np.bool_]:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    places = to_frame(np.stack([x.ravel(), y.ravel()], 1).astype(np.float64))
    inside = ((places > 0) & (places < FRAME_PX - 1)).all(1)
    return inside.reshape(height, width)
