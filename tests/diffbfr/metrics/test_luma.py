"""The luma is MATLAB's, and PSNR and SSIM of it are scikit-image's."""

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffbfr.metrics.luma import luma
from diffbfr.metrics.psnr import psnr_y
from diffbfr.metrics.ssim import ssim_y
from tests.diffbfr.metrics.pictures import blurred_faces, faces


def test_the_luma_is_that_of_scikit_image() -> None:
    face = faces()[0]
    found = luma(torch.from_numpy(face)[None])[0, ..., 0]
    np.testing.assert_allclose(found, rgb2ycbcr(face)[..., 0], rtol=0, atol=1e-9)
    assert (
        luma(torch.tensor([[[[0, 0, 0], [255, 255, 255]]]])).flatten() - torch.tensor([16, 235])
    ).abs().max() < 1e-9


def test_psnr_and_ssim_of_the_luma_are_those_of_scikit_image() -> None:
    pairs = list(zip(blurred_faces(), faces(), strict=True))
    a, b = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    for i, (x, y) in enumerate(pairs):
        x_y, y_y = rgb2ycbcr(x)[..., 0], rgb2ycbcr(y)[..., 0]
        assert abs(float(psnr_y(a, b)[i]) - peak_signal_noise_ratio(y_y, x_y, data_range=255)) < 1e-6
        wanted = structural_similarity(
            x_y, y_y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert abs(float(ssim_y(a, b)[i]) - wanted) < 1e-6
