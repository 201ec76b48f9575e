"""Resample an image under a similarity: bilinear where it grows, averaged over areas where it shrinks.

Beyond its edges the image is mirrored about them. The values are averaged as stored, not in linear light, as
the training's resize does.
"""

from math import ceil, floor
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from diffbfr.faces.similarity import Similarity


def warp(
    image: NDArray[Any], to_image: Similarity, height: int, width: int
) -> Float32[np.ndarray, "height width channels"]:
    """Sample `image` [h, w, channels] on a grid of height x width; `to_image` maps the grid to the image.

    uint8, uint16 or float32. Where a step of the grid is s > 1 pixels of the image, each value is the mean of
    ceil(s) x ceil(s) bilinear samples of its pixel; from s = 4 on, of an image reduced by whole pixels to
    steps of 2 to 3 first. OpenCV rounds positions to 1/32 of a pixel.
    """
    import cv2

    left, top, right, bottom = bounds(to_image, height, width)
    reduction = max(1, floor(to_image.scale / 2))
    across, down = (reduction * ceil(span / reduction) for span in (right - left, bottom - top))
    source = mirrored(image, (top, top + down), (left, left + across))
    if reduction > 1:
        size = (across // reduction, down // reduction)
        source = cv2.resize(source, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    to_source = to_image.then(Similarity.of_shift(-left, -top)).then(Similarity.of_resize(1 / reduction))
    samples = max(1, ceil(to_source.scale - 1e-6))
    fine: NDArray[Any] = cv2.warpAffine(
        source.astype(np.float32),
        Similarity.of_resize(1 / samples).then(to_source).matrix,
        (width * samples, height * samples),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    if samples > 1:
        fine = np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))
    return np.asarray(fine, np.float32).reshape(height, width, -1)


def bounds(to_image: Similarity, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of the image that the grid needs, with one to spare on each side."""
    right_edge, bottom_edge = width - 0.5, height - 0.5
    edges = np.array([(-0.5, -0.5), (right_edge, -0.5), (-0.5, bottom_edge), (right_edge, bottom_edge)])
    corners = to_image(edges)
    left, top = np.floor(corners.min(0)).astype(int) - 1
    right, bottom = np.ceil(corners.max(0)).astype(int) + 2
    return int(left), int(top), int(right), int(bottom)


def mirrored(image: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
    """The pixels of the ranges, mirrored about the edges of the image where they reach beyond them."""
    height, width = image.shape[:2]
    if rows[0] >= 0 and rows[1] <= height and columns[0] >= 0 and columns[1] <= width:
        return image[rows[0] : rows[1], columns[0] : columns[1]]
    return image.take(_mirror(rows, height), axis=0).take(_mirror(columns, width), axis=1)


def _mirror(span: tuple[int, int], length: int) -> NDArray[np.int64]:
    """Indices of a range in the sequence 0 .. length - 1, length - 1 .. 0, repeated for ever."""
    position = np.arange(*span) % (2 * length)
    return np.minimum(position, 2 * length - 1 - position)
