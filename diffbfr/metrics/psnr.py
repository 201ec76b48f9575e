"""Peak signal-to-noise ratio of 8-bit pictures."""

from jaxtyping import Float64, Num
from torch import Tensor

from diffbfr.errors import UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.luma import luma

INFO = MetricInfo(
    name="PSNR",
    version="1",
    unit="dB",
    better="higher",
    protocol="per image, 10 log10(255^2 / MSE) over all pixels of the three RGB channels, "
    "pixels rounded to 8 bits, no border cropped; "
    "the mean is over images",
)
INFO_Y = MetricInfo(
    name="PSNR (Y)",
    version="1",
    unit="dB",
    better="higher",
    protocol="per image, 10 log10(255^2 / MSE) over the luma (BT.601, 16 to 235, not rounded) of pixels of "
    "8 bits, no border cropped; the mean is over images",
)


def psnr(estimate: Num[Tensor, "b h w 3"], reference: Num[Tensor, "b h w 3"]) -> Float64[Tensor, " b"]:
    """PSNR in dB of every image of a batch; infinite for equal images.

    Pixels are in [0, 255], uint8 or float.
    """
    if estimate.shape != reference.shape:
        raise UsageError(
            f"PSNR got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must have one shape; "
            "resize first"
        )
    return _decibels(estimate.double() - reference.double())


def psnr_y(estimate: Num[Tensor, "b h w 3"], reference: Num[Tensor, "b h w 3"]) -> Float64[Tensor, " b"]:
    """PSNR in dB of the luma of every image of a batch; pixels as for `psnr`."""
    if estimate.shape != reference.shape:
        raise UsageError(
            f"PSNR got {tuple(estimate.shape)} against {tuple(reference.shape)}; both must have one shape; "
            "resize first"
        )
    return _decibels(luma(estimate) - luma(reference))


def _decibels(difference: Float64[Tensor, "b h w _c"]) -> Float64[Tensor, " b"]:
    return 10 * (255.0**2 / difference.square().flatten(1).mean(dim=1)).log10()
