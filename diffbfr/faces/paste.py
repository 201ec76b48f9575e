"""Paste restored faces back: a feathered mask, colours matched to the photo, nothing else touched.

Blending and matching happen in linear light, with sRGB's transfer curve. Each face is matched to the photo
as it was, never to another restored face; where masks overlap, the smaller face is laid first, and no face is
laid over the middle of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from diffbfr.errors import UsageError
from diffbfr.faces.align import FRAME_PX, Frame, Photo, colour_layers
from diffbfr.faces.light import Light, luminance, to_light, to_stored
from diffbfr.faces.similarity import Similarity
from diffbfr.faces.transparency import alpha_of, enlarge_seen, seen_share
from diffbfr.faces.warp import warp
from diffbfr.images import Pixels

MASK: Final = (255.5, 255.5, 248.0, 248.0)
"""Middle and half sides (512 px frame) of the superellipse |x|^4 + |y|^4 = 1 where the mask ends."""
MASK_FULL: Final = 0.7
"""Where the mask is 1, as a share of that; between the two it falls along a cubic."""
CORE: Final = (255.5, 290.0, 135.0, 195.0)
"""Middle and half axes of the ellipse that no other face is laid over."""
MOST_GAIN: Final = 1.25
"""Colours are matched by factors of linear light up to this, or down to its inverse."""
UPSCALES: Final = (1, 2, 4)


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """A restored frame (uint8 [px, px, 3], RGB, of any size) and where it lies in the photo."""

    frame: Frame
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class PhotoMask:
    """What a face covers: rows and columns of the photo, and its share [h, w] of the result in [0, 1]."""

    rows: slice
    columns: slice
    share: Float32[np.ndarray, "h w"]


def paste(
    photo: Photo,
    faces: Sequence[RestoredFace],
    *,
    keep: Sequence[Frame] = (),
    strength: float = 1.0,
    upscale: int = 1,
    background: Photo | None = None,
) -> Photo:
    """The photo with the faces in it, of its type and channels; the order of `faces` does not matter.

    `keep` are faces of the photo that are left alone: others are not laid over them either. `strength` in
    [0, 1] blends between the photo and the full result. `upscale` 1, 2 or 4 enlarges the photo first, by a
    bicubic kernel unless `background` is the photo enlarged in another way. Pixels outside of the masks are
    the (enlarged) photo's, and those that are wholly transparent, and alpha everywhere; where all channels of
    the photo are equal they stay so.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength is {strength}; expected a number from 0 to 1")
    pasted = enlarge(photo, upscale) if background is None else background.copy()
    if strength == 0:
        return pasted
    layers, gray = colour_layers(pasted), is_gray(colour_layers(photo))
    placed = [RestoredFace(face.frame.enlarged(upscale), face.pixels) for face in sorted(faces, key=_order)]
    everyone = [*(frame.enlarged(upscale) for frame in keep), *(face.frame for face in placed)]
    height, width = layers.shape[:2]
    masks = [mask_of(face.frame, height, width, everyone) for face in placed]
    covered = [(face, mask) for face, mask in zip(placed, masks, strict=True) if mask is not None]
    grounds = [layers[mask.rows, mask.columns].copy() for _, mask in covered]
    alpha = alpha_of(pasted)
    for (face, mask), ground in zip(covered, grounds, strict=True):
        part = layers[mask.rows, mask.columns]
        seen = None if alpha is None else seen_share(alpha[mask.rows, mask.columns])
        matched = _matched(face, mask, ground[..., :1] if gray else ground, seen)
        here = to_light(part[..., : matched.shape[2]])
        share = (mask.share if seen is None else mask.share * (seen > 0))[..., None]
        blended = to_stored(here + share * np.float32(strength) * (matched - here), part.dtype)
        np.copyto(part, blended, where=share > 0)
    return pasted


def mask_of(frame: Frame, height: int, width: int, others: Sequence[Frame] = ()) -> PhotoMask | None:
    """What a face covers in a photo of this size beside others; None if that is nothing."""
    to_frame = frame.to_photo.inverse()
    reach = (MASK[2] + MASK[3]) * frame.scale / 2 * 1.4143
    ((x, y),) = frame.to_photo(np.array([MASK[:2]]))
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    if top >= bottom or left >= right:
        return None
    rows, columns = slice(top, bottom), slice(left, right)
    share = _falling(_away(to_frame, rows, columns, MASK, 4), MASK_FULL, 1.0)
    own = _core(to_frame, rows, columns)
    for other in others:
        if (
            other != frame
            and np.hypot(*(other.to_photo(_MIDDLE) - (x, y))[0]) < reach + other.scale * FRAME_PX
        ):
            share *= 1 - _core(other.to_photo.inverse(), rows, columns) * (1 - own)
    return PhotoMask(rows, columns, share) if share.any() else None


def touched(
    height: int, width: int, faces: Sequence[Frame], keep: Sequence[Frame] = (), upscale: int = 1
) -> NDArray[np.bool_]:
    """Which pixels of the result `paste` may change; height and width are the photo's."""
    changed = np.zeros((height * upscale, width * upscale), bool)
    everyone = [frame.enlarged(upscale) for frame in (*keep, *faces)]
    for frame in everyone[len(keep) :]:
        mask = mask_of(frame, *changed.shape, everyone)
        if mask is not None:
            changed[mask.rows, mask.columns] |= mask.share > 0
    return changed


def enlarge(photo: Photo, factor: int) -> Photo:
    """A copy of the photo, enlarged by 1, 2 or 4 with a bicubic kernel."""
    import cv2

    if factor not in UPSCALES:
        raise UsageError(f"upscale is {factor}; expected one of {', '.join(map(str, UPSCALES))}")
    if factor == 1:
        return photo.copy()
    if alpha_of(photo) is not None:
        return enlarge_seen(photo, factor)
    height, width = photo.shape[:2]
    size = (width * factor, height * factor)
    resized = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(resized).reshape(size[1], size[0], *photo.shape[2:])


def is_gray(layers: NDArray[Any]) -> bool:
    """Whether all channels [h, w, channels] are equal everywhere."""
    sparse = layers[::16, ::16]  # settles nearly every colour photo without reading it whole
    return all(bool((part[..., :1] == part).all()) for part in (sparse, layers))


def _matched(
    face: RestoredFace, mask: PhotoMask, ground: NDArray[Any], seen: NDArray[np.float32] | None
) -> Light:
    """The restored face on the photo's pixels, in linear light, which is the photo's where the mask is.

    `seen` is how far each pixel of the photo is seen, None if all are. The seam counts twice; alone it would
    carry into the face whatever else the cascade drew behind it.
    """
    corner = Similarity.of_shift(mask.columns.start, mask.rows.start)
    to_face = corner.then(face.frame.at(face.pixels.shape[0]).inverse())
    restored = to_light(np.clip(warp(face.pixels, to_face, *mask.share.shape) / np.float32(255), 0, 1))
    if ground.shape[2] == 1:
        restored = luminance(restored)
    weights = mask.share * (2 - mask.share)
    return restored * _gain(restored, to_light(ground), weights if seen is None else weights * seen)


def _gain(restored: Light, before: Light, weights: Float32[np.ndarray, "h w"]) -> Light:
    """Factors [h, w, channels] that give the restored face the photo's light.

    A plane for each channel: its weighted moments of order 0 and 1 become the photo's. That is not least
    squares, which takes the noise of the restored face for a reason to darken it.
    """
    height, width = weights.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    plane = np.stack([np.ones_like(x), x, y], 2).reshape(-1, 3)
    weight = weights.reshape(-1).astype(np.float64)
    gains = []
    for channel in range(before.shape[2]):
        ours, theirs = (light[..., channel].reshape(-1) for light in (restored, before))
        moments = plane.T @ (plane * (weight * ours)[:, None])
        wanted = plane.T @ (weight * theirs)
        # A part that is small (at the border of the photo) or black leaves the factors near 1.
        prior = 0.02 * moments[0, 0] + 1e-4 * weight.sum() + 1e-12
        wanted[0] += prior
        factors = plane @ np.linalg.solve(moments + prior * np.eye(3), wanted)
        gains.append(np.clip(factors, 1 / MOST_GAIN, MOST_GAIN).astype(np.float32).reshape(height, width))
    return np.stack(gains, 2)


_MIDDLE: Final = np.array([MASK[:2]])


def _order(face: RestoredFace) -> tuple[float, float, float]:
    to_photo = face.frame.to_photo
    return face.frame.scale, to_photo.shift_x, to_photo.shift_y


def _core(to_frame: Similarity, rows: slice, columns: slice) -> Float32[np.ndarray, "h w"]:
    return _falling(_away(to_frame, rows, columns, CORE, 2), 0.85, 1.15)


def _away(
    to_frame: Similarity, rows: slice, columns: slice, shape: tuple[float, float, float, float], power: int
) -> Float32[np.ndarray, "h w"]:
    """How far pixels lie from the middle of a superellipse of the frame, where 1 is its edge."""
    x, y = np.arange(columns.start, columns.stop)[None], np.arange(rows.start, rows.stop)[:, None]
    across = (to_frame.a * x - to_frame.b * y + (to_frame.shift_x - shape[0])) / shape[2]
    down = (to_frame.b * x + to_frame.a * y + (to_frame.shift_y - shape[1])) / shape[3]
    distance: NDArray[np.float32] = ((across**power + down**power) ** (1 / power)).astype(np.float32)
    return distance


def _falling(away: Float32[np.ndarray, "h w"], full: float, end: float) -> Float32[np.ndarray, "h w"]:
    """1 up to `full`, 0 from `end` on, a smooth cubic between."""
    left = np.clip((end - away) / np.float32(end - full), 0, 1)
    return left * left * (3 - 2 * left)
