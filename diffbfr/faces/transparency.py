"""Photos with transparent pixels: what is seen of them counts, and the colours stored below do not.

Editors store anything below full transparency: black, white, or what was cut away. Averaged into a face or an
enlarged edge it would show as a fringe. So colours are averaged by their opacity, and where a picture without
alpha is needed, what is hardly seen gets the colours around it.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from diffbfr.faces.similarity import Similarity
from diffbfr.faces.warp import bounds, mirrored, warp

WHOLLY_SEEN: Final = 0.5
"""Share of the greatest opacity from which on a pixel counts fully: a faint photo still has all its faces.

Below, the square counts: along an edge what is behind is often mixed into the stored colour."""
ROWS: Final = 256
"""Rows that are computed at once, a bound of memory."""
_KERNEL_PX: Final = 4


def alpha_of(photo: NDArray[Any]) -> NDArray[Any] | None:
    """The alpha [h, w] of a photo with 2 or 4 channels; None if it has none, or is opaque everywhere."""
    if photo.ndim != 3 or photo.shape[2] not in (2, 4):
        return None
    alpha = photo[..., -1]
    return None if int(alpha.min()) == np.iinfo(photo.dtype).max else alpha


def seen_share(alpha: NDArray[Any], most: int | None = None) -> NDArray[np.float32]:
    """How far each pixel counts as seen, in [0, 1]; `most` is the greatest alpha, by default of these."""
    most = int(alpha.max()) if most is None else most
    share: NDArray[np.float32] = alpha.astype(np.float32) / np.float32(max(1.0, most * WHOLLY_SEEN))
    return np.square(np.minimum(share, np.float32(1)))


def warp_seen(
    photo: NDArray[Any], to_photo: Similarity, height: int, width: int
) -> Float32[np.ndarray, "height width colours"]:
    """`warp` of the colours that are seen of a photo with alpha."""
    left, top, right, bottom = bounds(to_photo, height, width)
    region = mirrored(photo, (top, bottom), (left, right))
    if not region[..., -1].any():
        return warp(region[..., :-1], to_photo.then(Similarity.of_shift(-left, -top)), height, width)
    return filled(warp(_weighed(region), to_photo.then(Similarity.of_shift(-left, -top)), height, width))


def on_mean_colour(photo: NDArray[Any]) -> NDArray[Any]:
    """The colours of a photo with alpha [h, w, channels - 1], laid on the mean of those that are seen."""
    total, weight, most = np.zeros(photo.shape[2] - 1), 0.0, int(photo[..., -1].max())
    for rows in _strips(photo.shape[0]):
        part = _weighed(photo[rows], most)
        total += part[..., :-1].sum((0, 1), dtype=np.float64)
        weight += float(part[..., -1].sum(dtype=np.float64))
    if not weight:
        return photo[..., :-1]
    laid = np.empty((*photo.shape[:2], photo.shape[2] - 1), photo.dtype)
    mean = (total / weight).astype(np.float32)
    for rows in _strips(photo.shape[0]):
        part = _weighed(photo[rows], most)
        laid[rows] = np.rint(part[..., :-1] + (1 - part[..., -1:]) * mean)
    return laid


def filled_colours(photo: NDArray[Any]) -> NDArray[Any]:
    """The colours of a photo with alpha [h, w, channels - 1]; what is not seen has those around it."""
    weighed = _weighed(photo)
    return np.rint(filled(weighed)).astype(photo.dtype) if weighed[..., -1].any() else photo[..., :-1]


def filled(weighed: Float32[np.ndarray, "h w colours_and_share"]) -> Float32[np.ndarray, "h w colours"]:
    """Colours that are weighed by the share behind them, with means of what is around where it is below 1.

    The means are taken at half the size, and so on, as in a pyramid: near by where something is near.
    """
    import cv2

    colours, share = weighed[..., :-1], weighed[..., -1:]
    height, width = share.shape[:2]
    if height == width == 1:
        mean: NDArray[np.float32] = colours / np.maximum(share, np.float32(1e-6))
        return mean
    half = cv2.resize(weighed, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
    around: NDArray[Any] = cv2.resize(
        filled(np.asarray(half)), (width, height), interpolation=cv2.INTER_LINEAR
    )
    result: NDArray[np.float32] = colours + (1 - share) * around.reshape(colours.shape)
    return result


def enlarge_seen(photo: NDArray[Any], factor: int) -> NDArray[Any]:
    """A photo with alpha enlarged by a bicubic kernel: colours by their opacity, and alpha by itself."""
    import cv2

    height, width, channels = photo.shape
    full = np.float32(np.iinfo(photo.dtype).max)
    large = np.empty((height * factor, width * factor, channels), photo.dtype)
    for rows in _strips(height):
        above = min(_KERNEL_PX, rows.start)
        part = photo[rows.start - above : rows.stop + _KERNEL_PX].astype(np.float32) / full
        part[..., :-1] *= part[..., -1:]
        size = (width * factor, part.shape[0] * factor)
        resized = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
        fine: NDArray[np.float32] = np.asarray(resized, np.float32)[above * factor :][
            : (rows.stop - rows.start) * factor
        ]
        fine[..., :-1] /= np.maximum(fine[..., -1:], 0.5 / full)
        large[rows.start * factor : rows.stop * factor] = np.rint(np.clip(fine, 0, 1) * full)
    return large


def _weighed(photo: NDArray[Any], most: int | None = None) -> Float32[np.ndarray, "h w channels"]:
    """Colours times how far they are seen, and that."""
    share = seen_share(photo[..., -1], most)[..., None]
    return np.concatenate([photo[..., :-1].astype(np.float32) * share, share], axis=2)


def _strips(height: int) -> Iterator[slice]:
    return (slice(top, min(height, top + ROWS)) for top in range(0, height, ROWS))
