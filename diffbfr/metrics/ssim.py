"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 2004)."""

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.luma import luma

WINDOW_PX = 11
SIGMA_PX = 1.5
C_1 = (0.01 * 255) ** 2
C_2 = (0.03 * 255) ** 2

INFO = MetricInfo(
    name="SSIM",
    version="1",
    unit="",
    better="higher",
    protocol="Wang 2004: Gaussian window of 11 x 11 with sigma 1.5, K = (0.01, 0.03), "
    "data range 255, population (co)variances, "
    "mean over the pixels whose window lies inside the picture and over the three RGB channels, pixels "
    "rounded to 8 bits",
)
INFO_Y = MetricInfo(
    name="SSIM (Y)",
    version="1",
    unit="",
    better="higher",
    protocol="as SSIM, over the luma (BT.601, 16 to 235, not rounded) with data range 255",
)


def ssim(estimate: Num[Tensor, "b h w 3"], reference: Num[Tensor, "b h w 3"]) -> Float64[Tensor, " b"]:
    """SSIM in [-1, 1] of every image of a batch; pixels in [0, 255], uint8 or float.

    The numbers are those of scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1`.
    """
    _check(estimate, reference)
    return _ssim(estimate, reference)


def ssim_y(estimate: Num[Tensor, "b h w 3"], reference: Num[Tensor, "b h w 3"]) -> Float64[Tensor, " b"]:
    """SSIM of the luma of every image of a batch; pixels as for `ssim`."""
    _check(estimate, reference)
    return _ssim(luma(estimate), luma(reference))


def _check(estimate: Num[Tensor, "b h w c"], reference: Num[Tensor, "b _h _w c"]) -> None:
    if estimate.shape != reference.shape:
        raise UsageError(
            f"SSIM got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must have one shape; "
            "resize first"
        )
    if min(estimate.shape[1:3]) < WINDOW_PX:
        raise UsageError(
            f"SSIM got pictures of {estimate.shape[1]} x {estimate.shape[2]}; it needs {WINDOW_PX} px a "
            "side; use larger ones"
        )


def _ssim(estimate: Num[Tensor, "b h w c"], reference: Num[Tensor, "b h w c"]) -> Float64[Tensor, " b"]:
    x, y = (_planes(image) for image in (estimate, reference))
    mean_x, mean_y = _windowed_mean(x), _windowed_mean(y)
    variance_x = _windowed_mean(x * x) - mean_x**2
    variance_y = _windowed_mean(y * y) - mean_y**2
    covariance = _windowed_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C_1) / (mean_x**2 + mean_y**2 + C_1)
    structure = (2 * covariance + C_2) / (variance_x + variance_y + C_2)
    return (luminance * structure).mean(dim=(1, 2)).view(len(estimate), -1).mean(dim=1)


def _planes(image: Num[Tensor, "b h w c"]) -> Float64[Tensor, "planes h w"]:
    return image.double().permute(0, 3, 1, 2).flatten(0, 1)


def _windowed_mean(planes: Float64[Tensor, "planes h w"]) -> Float64[Tensor, "planes h_valid w_valid"]:
    """Gaussian-weighted mean of every window that lies inside, one axis after the other."""
    offset = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    weights = torch.softmax(-(offset**2) / (2 * SIGMA_PX**2), dim=0).tolist()
    return _slide(_slide(planes, 1, weights), 2, weights)


def _slide(
    planes: Float64[Tensor, "planes h w"], axis: int, weights: list[float]
) -> Float64[Tensor, "planes _h _w"]:
    """Weighted sum of neighbours along an axis, by shifted slices.

    That is 3 times faster than a float64 convolution on a CPU.
    """
    length = planes.shape[axis] - len(weights) + 1
    total = torch.zeros_like(planes.narrow(axis, 0, length))
    for shift, weight in enumerate(weights):
        total += weight * planes.narrow(axis, shift, length)
    return total
