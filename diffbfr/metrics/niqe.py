"""NIQE (Mittal, Soundararajan, Bovik: Making a completely blind image quality analyzer, IEEE SPL 2013).

Luma is normalised by its local mean and deviation. Generalised Gaussians fitted to blocks of 96 px and of
half that size on half the scale give 36 features a block; NIQE is the distance of their Gaussian to that of
pristine photographs. The pristine parameters are the published ones.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float64, Num
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, pad

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.luma import luma

BLOCK_PX: Final = 96
SMALLEST_PX: Final = 2 * BLOCK_PX
WINDOW_PX: Final = 7
WINDOW_SIGMA_PX: Final = 7 / 6
NUM_FEATURES: Final = 36
SMALLEST_DIFFERENCE: Final = 1e-9
"""In levels of 255."""
SHIFTS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours whose products with a pixel are fitted: right, below, and the diagonals."""

INFO: Final = MetricInfo(
    name="NIQE",
    version="1",
    unit="",
    better="lower",
    protocol="luma (BT.601, 16 to 235) rounded, no border cropped, blocks of 96 px without overlap, the "
    "published pristine parameters, bicubic halving as MATLAB's imresize; of the restoration alone",
)


@dataclass(frozen=True, eq=False)
class PristineModel:
    """The Gaussian of the features of pristine photographs."""

    mean: Float64[Tensor, "36"]
    covariance: Float64[Tensor, "36 36"]


def load_pristine(path: str | Path) -> PristineModel:
    """Read the parameters from a safetensors file; UsageError if they are not there."""
    remedy = "expected NIQE's pristine parameters; run `diffbfr setup metrics`"
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); {remedy}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != {"mean": (NUM_FEATURES,), "covariance": (NUM_FEATURES, NUM_FEATURES)}:
        raise UsageError(f"{path} holds {shapes}; {remedy}")
    return PristineModel(stored["mean"].double(), stored["covariance"].double())


def niqe(image: Num[Tensor, "b h w 3"], pristine: PristineModel) -> Float64[Tensor, " b"]:
    """NIQE of every picture of a batch, RGB in [0, 255]; NaN where a picture has no texture at all."""
    if min(image.shape[1:3]) < SMALLEST_PX:
        raise UsageError(
            f"NIQE got pictures of {image.shape[1]} x {image.shape[2]}; it needs {SMALLEST_PX} px a side; "
            "use larger ones"
        )
    return torch.stack([_distance(block_features(gray), pristine) for gray in luma(image)[..., 0].round()])


def block_features(gray: Float64[Tensor, "h w"]) -> Float64[Tensor, "blocks 36"]:
    """The features of the blocks that fit into a picture: 18 at its scale, 18 at half of it."""
    rows, columns = (side // BLOCK_PX for side in gray.shape)
    scaled = gray[: rows * BLOCK_PX, : columns * BLOCK_PX]
    features = []
    for block_px in (BLOCK_PX, BLOCK_PX // 2):
        features.append(_scale_features(_normalised(scaled), block_px))
        scaled = _halved(scaled)
    return torch.cat(features, dim=1)


def _distance(features: Float64[Tensor, "blocks 36"], pristine: PristineModel) -> Float64[Tensor, ""]:
    usable = features[features.isfinite().all(dim=1)]
    if len(usable) < 2:
        return torch.tensor(math.nan, dtype=torch.float64)
    covariance = (pristine.covariance + torch.cov(usable.T)) / 2
    difference = pristine.mean - features.nanmean(dim=0)
    squared: Tensor = difference @ torch.linalg.pinv(covariance, hermitian=True) @ difference
    return squared.sqrt()


def _normalised(gray: Float64[Tensor, "h w"]) -> Float64[Tensor, "h w"]:
    """Deviation from the local mean in units of the local deviation (Eq. 1).

    Where a picture is flat this is 0, and the fits below count positive and negative values. Rounding errors
    would get a sign there, another one in each program; so what is smaller than any real difference is 0.
    """
    mean = _window_mean(gray)
    difference = gray - mean
    difference = torch.where(difference.abs() < SMALLEST_DIFFERENCE, 0, difference)
    deviation = (_window_mean(gray.square()) - mean.square()).abs().sqrt()
    return difference / (deviation + 1)


def _window_mean(gray: Float64[Tensor, "h w"]) -> Float64[Tensor, "h w"]:
    """Mean under a Gaussian of 7 x 7; borders are continued by their last pixel."""
    offset = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    weights = torch.softmax(-(offset**2) / (2 * WINDOW_SIGMA_PX**2), dim=0)
    window = torch.outer(weights, weights)[None, None]
    half = WINDOW_PX // 2
    return conv2d(pad(gray[None, None], (half, half, half, half), mode="replicate"), window)[0, 0]


def _scale_features(normalised: Float64[Tensor, "h w"], px: int) -> Float64[Tensor, "blocks 18"]:
    height, width = normalised.shape
    # Blocks column by column, as the published code counts them.
    blocks = normalised.view(height // px, px, width // px, px).permute(2, 0, 1, 3).reshape(-1, px, px)
    alpha, left, right = _fit(blocks.flatten(1))
    features = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        alpha, left, right = _fit((blocks * blocks.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        features += [alpha, mean, left, right]
    return torch.stack(features, dim=1)


def _fit(values: Float64[Tensor, "blocks n"]) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left scale and right scale of asymmetric generalised Gaussians, by moments (Eq. 7)."""
    left, right = (_deviation_of(values, side) for side in (values < 0, values > 0))
    ratio = left / right
    moment = values.abs().mean(dim=1).square() / values.square().mean(dim=1)
    wanted = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, moments = _shape_table()
    above = torch.searchsorted(moments, wanted.contiguous()).clamp(1, len(moments) - 1)
    nearer_below = wanted - moments[above - 1] <= moments[above] - wanted
    alpha = torch.where(wanted.isfinite(), shapes[above - nearer_below.long()], math.nan)
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


def _deviation_of(values: Float64[Tensor, "blocks n"], chosen: Tensor) -> Float64[Tensor, " blocks"]:
    total = torch.where(chosen, values.square(), 0).sum(dim=1)
    return (total / chosen.sum(dim=1)).sqrt()


@functools.cache
def _shape_table() -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Shapes a from 0.2 to 10, and gamma(2/a)^2 / (gamma(1/a) gamma(3/a)), which rises with a."""
    shapes = 0.2 + 0.001 * torch.arange(9801, dtype=torch.float64)
    log_moment = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, log_moment.exp()


def _halved(gray: Float64[Tensor, "h w"]) -> Float64[Tensor, "_h _w"]:
    """Half the size by the antialiased cubic of MATLAB's imresize, mirrored at the borders."""
    offset = torch.arange(8, dtype=torch.float64) - 3.5
    weights = _cubic(offset / 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        flipped = gray.flip(axis)
        size = gray.shape[axis]
        wide = torch.cat([flipped.narrow(axis, size - 3, 3), gray, flipped.narrow(axis, 0, 3)], dim=axis)
        gray = (wide.unfold(axis, 8, 2) * weights).sum(dim=-1)
    return gray


def _cubic(x: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Keys' kernel with a = -1/2."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0))
