"""Luma of BT.601 in its video range, as MATLAB's rgb2ycbcr computes it; the Y of PSNR, SSIM and NIQE."""

from typing import Final

import torch
from jaxtyping import Float64, Num
from torch import Tensor

WEIGHTS: Final = (65.481, 128.553, 24.966)
BLACK: Final = 16.0


def luma(image: Num[Tensor, "b h w 3"]) -> Float64[Tensor, "b h w 1"]:
    """Y in [16, 235] of RGB in [0, 255]; not rounded."""
    weights = image.new_tensor(WEIGHTS, dtype=torch.float64)
    return (image.double() @ weights / 255 + BLACK).unsqueeze(-1)
