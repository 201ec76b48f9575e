"""MNIST from its four idx files, and the long-tailed part of it that Figure 2 trains on."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from diffbfr.errors import UsageError

DIGITS: Final = 10
PX: Final = 28
HEAD: Final = (0, 1)
"""The labels that are kept whole."""
TAIL: Final = tuple(range(2, DIGITS))
TAIL_COUNTS: Final = (1200, 864, 622, 447, 322, 232, 167, 120)
"""Pictures that are kept of each other label: a geometric fall to a tenth. The paper does not say its own."""
_FILES: Final = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UINT8: Final = 8


@dataclass(frozen=True)
class Digits:
    """Pictures, uint8 [n, 28, 28], and their labels, uint8 [n]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shares(self) -> NDArray[np.float64]:
        """The fraction of each label."""
        return label_shares(self.labels)


def label_shares(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The fraction of each of the ten labels."""
    counts = np.bincount(labels, minlength=DIGITS)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def read_digits(folder: Path, part: Literal["train", "test"]) -> Digits:
    """Read one part; UsageError if its files are not there or not MNIST's."""
    images, labels = (_read_idx(folder / name) for name in _FILES[part])
    if images.shape[1:] != (PX, PX) or labels.shape != images.shape[:1] or labels.max(initial=0) >= DIGITS:
        raise UsageError(
            f"{folder} holds pictures of shape {images.shape} and labels of shape {labels.shape}; expected "
            f"MNIST: n x {PX} x {PX}, and n labels from 0 to {DIGITS - 1}"
        )
    return Digits(images, labels)


def long_tail(digits: Digits, tail_counts: Sequence[int] = TAIL_COUNTS) -> Digits:
    """Keep the labels of `HEAD` whole, and of each other the first `tail_counts` pictures."""
    kept = [np.flatnonzero(np.isin(digits.labels, HEAD))]
    for label, count in zip(TAIL, tail_counts, strict=True):
        kept.append(np.flatnonzero(digits.labels == label)[:count])
    rows = np.sort(np.concatenate(kept))
    return Digits(digits.pixels[rows], digits.labels[rows])


def to_model(pixels: NDArray[np.uint8]) -> Float[Tensor, "n 1 28 28"]:
    """Pictures in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32))[:, None] / 127.5 - 1


def to_pixels(pictures: Float[Tensor, "n 1 28 28"]) -> NDArray[np.uint8]:
    """Pictures in [-1, 1] as uint8 [n, 28, 28]; what is outside is cut."""
    levels = ((pictures[:, 0].clamp(-1, 1) + 1) * 127.5).round()
    return np.asarray(levels.to(torch.uint8).numpy())


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read bytes in the idx format: two zeros, the type, the number of axes, their lengths, the data."""
    if not path.is_file():
        raise UsageError(f"no file {path}; expected MNIST's four idx.gz files; name their folder")
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); expected a gzip file; fetch it again") from error
    axes = data[3] if len(data) >= 4 and data[:3] == bytes([0, 0, _UINT8]) else 0
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    body = data[4 + 4 * axes :]
    if not axes or len(body) != np.prod(shape):
        raise UsageError(
            f"{path} holds no array of bytes in the idx format; expected MNIST's; fetch it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
