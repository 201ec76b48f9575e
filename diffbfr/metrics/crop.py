"""Cut a network's crop out of faces that are aligned to the FFHQ frame, by one similarity for all of them."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch import tensor as as_tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

FRAME_PX: Final = 512
FFHQ_POINTS: Final = (
    (192.98, 239.95),
    (318.90, 240.19),
    (256.63, 314.02),
    (201.26, 371.41),
    (313.09, 371.15),
)
"""Eyes, nose and corners of the mouth in the FFHQ frame of 512 px, x and y."""


@dataclass(frozen=True)
class Frame:
    """A network's crop: where it wants the first points of `FFHQ_POINTS`, and its height and width in px."""

    points: tuple[tuple[float, float], ...]
    size: tuple[int, int]


def crop_frame(face: Float[Tensor, "b 3 px px"], frame: Frame) -> Float[Tensor, "b 3 h w"]:
    """The crop of faces in the FFHQ frame of any size, RGB in [-1, 1]; what lies outside is mid grey.

    The frame is first brought to about the scale of the crop, with antialiasing, and then sampled bilinearly.
    """
    turn, shift = similarity(np.array(frame.points), np.array(FFHQ_POINTS[: len(frame.points)]))
    near_px = round(FRAME_PX / float(np.hypot(*turn[:, 0])))
    near = interpolate(face, size=(near_px, near_px), mode="bilinear", antialias=True, align_corners=False)
    height, width = frame.size
    # Points as the samplers count them: x of the crop from -1 to 1 over its width, x of the frame likewise.
    scale = np.array([width / 2, height / 2])
    centre = turn @ (scale - 0.5) + shift + 0.5
    half = FRAME_PX / 2
    theta = np.concatenate([turn * scale, (centre - half)[:, None]], axis=1) / half
    grid = affine_grid(
        as_tensor(theta, dtype=face.dtype).expand(len(face), 2, 3),
        [len(face), 3, height, width],
        align_corners=False,
    )
    return grid_sample(near, grid.to(face.device), mode="bilinear", padding_mode="zeros", align_corners=False)


def similarity(
    points: Float[np.ndarray, "n 2"], targets: Float[np.ndarray, "n 2"]
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation with scale, and shift, that map the points closest to the targets (Umeyama 1991)."""
    x = points - points.mean(0)
    y = targets - targets.mean(0)
    a = (x * y).sum() / (x**2).sum()
    b = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum() / (x**2).sum()
    turn = np.array([[a, -b], [b, a]])
    return turn, targets.mean(0) - turn @ points.mean(0)
