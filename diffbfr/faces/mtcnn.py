"""MTCNN (Zhang et al., arXiv:1604.02878): three small networks, each of which sifts the boxes of the last.

P-Net looks at every window of 12 px of an image pyramid, R-Net at 24 x 24 px of each box left, O-Net at 48 x
48 px, which also places the five points. Pixels enter as (x - 127.5) / 128.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, log
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from diffbfr.errors import UsageError
from diffbfr.faces.detect import Face, as_points
from diffbfr.images import Pixels

THRESHOLDS: Final = (0.6, 0.7)
"""Of P-Net and R-Net, as published."""
SMALLEST_PX: Final = 15
"""Side of the smallest box that P-Net looks for."""
PYRAMID_FACTOR: Final = 0.709
BATCH: Final = 256


class WindowNet(nn.Module):
    """One of the three networks: convolutions, pooling, and heads for the score, the box and the points."""

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        pools: Sequence[int],
        hidden: int,
        heads: Sequence[int],
    ) -> None:
        """`hidden` units after the convolutions, each with what is left of the window; 0: none, and the heads
        are convolutions too.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for (narrow, wide), kernel, pool in zip(pairwise((3, *channels)), kernels, pools, strict=True):
            layers += [nn.Conv2d(narrow, wide, kernel), nn.PReLU(wide)]
            if pool:
                layers.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(channels[-1] * 9, hidden), nn.PReLU(hidden)) if hidden else None
        self.heads = nn.ModuleList(
            nn.Linear(hidden, size) if hidden else nn.Conv2d(channels[-1], size, 1) for size in heads
        )

    def forward(self, windows: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Score in [0, 1] of being a face, then what the other heads give."""
        features: Tensor = self.trunk(windows)
        if self.hidden is not None:
            # The weights count x before y.
            features = self.hidden(features.permute(0, 3, 2, 1).flatten(1))
        score, *rest = (head(features) for head in self.heads)
        return [score.softmax(1)[:, 1], *rest]


def p_net() -> WindowNet:
    """The proposal network."""
    return WindowNet((10, 16, 32), (3, 3, 3), (2, 0, 0), 0, (2, 4))


def r_net() -> WindowNet:
    """The refinement network; 576 = 64 x 3 x 3 features of 24 px."""
    return WindowNet((28, 48, 64), (3, 3, 2), (3, 3, 0), 128, (2, 4))


def o_net() -> WindowNet:
    """The output network; 1152 = 128 x 3 x 3 features of 48 px."""
    return WindowNet((32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0), 256, (2, 4, 10))


class Mtcnn:
    """MTCNN with the weights of one safetensors file, as `diffbfr.faces.weights` writes it."""

    sizes = (8.0, 800.0)  # the pyramid is its own
    min_score = 0.97

    def __init__(self, weights: str | Path) -> None:
        """Read the weights; `UsageError` for a file that is missing or holds something else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(weights).is_file():
            raise UsageError(f'no file {weights}; expected the weights of MTCNN; run "diffbfr setup faces"')
        nets = (p_net(), r_net(), o_net())
        networks = nn.ModuleDict(dict(zip("pro", nets, strict=True)))
        try:
            networks.load_state_dict(load_file(weights))
        except (RuntimeError, SafetensorError) as error:
            raise UsageError(
                f'{weights} does not hold the three networks of MTCNN; run "diffbfr setup faces" again'
            ) from error
        networks.eval().requires_grad_(False)
        self.name = f"mtcnn {hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12]}"
        self._p, self._r, self._o = nets

    @torch.inference_mode()
    def detect(self, pixels: Pixels, min_score: float | None = None) -> Sequence[Face]:
        """Faces of an image (uint8 h w 3, RGB), the best first."""
        picture = (pixels.astype(np.float32) - 127.5) / 128
        boxes = self._propose(picture)
        if not len(boxes):
            return []
        score, shift = self._look(self._r, picture, boxes, 24)
        passed = score > THRESHOLDS[1]
        boxes = np.concatenate([boxes[passed, :4], score[passed, None]], 1)
        chosen = suppress(boxes, 0.7)
        boxes = square(shifted(boxes[chosen], shift[passed][chosen]))
        if not len(boxes):
            return []
        score, shift, places = self._look(self._o, picture, boxes, 48)
        passed = score > (self.min_score if min_score is None else min_score)
        boxes = np.concatenate([boxes[passed, :4], score[passed, None]], 1)
        left, top, right, bottom = boxes[:, :4].T
        x = left[:, None] + places[passed, :5] * (right - left)[:, None] - 0.5
        y = top[:, None] + places[passed, 5:] * (bottom - top)[:, None] - 0.5
        points, boxes = np.stack([x, y], 2), shifted(boxes, shift[passed])
        return [
            Face(
                (float(boxes[i, 0]), float(boxes[i, 1]), float(boxes[i, 2]), float(boxes[i, 3])),
                as_points(points[i].astype(np.float64)),
                float(boxes[i, 4]),
            )
            for i in suppress(boxes, 0.7, of_smaller=True)
        ]

    def _propose(self, picture: Float32[np.ndarray, "h w 3"]) -> np.ndarray:
        """Square boxes (left, top, right, bottom, score) that P-Net takes for faces."""
        height, width = picture.shape[:2]
        start = 12 / SMALLEST_PX
        levels = (
            ceil(log(12 / (start * min(height, width))) / log(PYRAMID_FACTOR))
            if start * min(height, width) >= 12
            else 0
        )
        found = [np.zeros((0, 9))]
        for scale in (start * PYRAMID_FACTOR**level for level in range(max(levels, 1))):
            size = (ceil(height * scale), ceil(width * scale))
            if min(size) < 12:
                continue
            score, shift = self._p(torch.from_numpy(_resized(picture, size)[None]).permute(0, 3, 1, 2))
            ys, xs = np.nonzero((score[0] > THRESHOLDS[0]).numpy())
            corner = np.stack([2 * xs, 2 * ys], 1) * (width / size[1], height / size[0])
            far = np.stack([2 * xs + 12, 2 * ys + 12], 1) * (width / size[1], height / size[0])
            boxes = np.concatenate(
                [corner, far, score[0].numpy()[ys, xs][:, None], shift[0].numpy()[:, ys, xs].T], 1
            )
            found.append(boxes[suppress(boxes, 0.5)])
        boxes = np.concatenate(found)
        boxes = boxes[suppress(boxes, 0.7)]
        return square(shifted(boxes[:, :5], boxes[:, 5:]))

    def _look(
        self, network: WindowNet, picture: Float32[np.ndarray, "h w 3"], boxes: np.ndarray, px: int
    ) -> list[np.ndarray]:
        """What a network says of each box, brought to px x px."""
        stacked = np.stack([_window(picture, box, px) for box in boxes])
        windows = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        answers = [network(part) for part in torch.split(windows, BATCH)]
        return [torch.cat(parts).numpy() for parts in zip(*answers, strict=True)]


def convert(nets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Our state dict of the three networks from the layers of `p`, `r` and `o` in their order."""
    state: dict[str, Tensor] = {}
    for name, network in (("p", p_net()), ("r", r_net()), ("o", o_net())):
        given = list(nets[name].values())
        wanted = network.state_dict()
        if [tuple(tensor.shape) for tensor in given] != [tuple(tensor.shape) for tensor in wanted.values()]:
            raise UsageError(f"{name.upper()}-Net's layers have other shapes; expected those of MTCNN")
        state |= {f"{name}.{key}": tensor.contiguous() for key, tensor in zip(wanted, given, strict=True)}
    return state


def suppress(boxes: np.ndarray, share: float, of_smaller: bool = False) -> np.ndarray:
    """Indices of the boxes, the best first, without those that share more with a better one.

    The share is of what both cover, or of the smaller of the two.
    """
    left, top, right, bottom, score = boxes[:, :5].T
    areas = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    order, kept = np.argsort(-score, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        width = np.minimum(right[best], right[order]) - np.maximum(left[best], left[order])
        height = np.minimum(bottom[best], bottom[order]) - np.maximum(top[best], top[order])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        base = np.minimum(areas[best], areas[order]) if of_smaller else areas[best] + areas[order] - common
        order = order[common <= share * base]
    return np.array(kept, dtype=np.int64)


def shifted(boxes: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Move the edges by shares of the box's sides."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    moved = boxes.copy()
    moved[:, :4] += shift * np.stack([width, height, width, height], 1)
    return moved


def square(boxes: np.ndarray) -> np.ndarray:
    """Boxes of the longer side around the same centres."""
    half = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])[:, None] / 2
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, 4:]], 1)


def _window(
    picture: Float32[np.ndarray, "h w 3"], box: np.ndarray, px: int
) -> Float32[np.ndarray, "px px 3"]:
    """The pixels of a box, mid grey beyond the picture, brought to px x px."""
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(float(edge)) for edge in box[:4])
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    window = np.zeros((bottom - top, right - left, 3), np.float32)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = picture[
            rows, columns
        ]
    return _resized(window, (px, px))


def _resized(picture: Float32[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "_h _w 3"]:
    import cv2

    resized: np.ndarray = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    return resized
