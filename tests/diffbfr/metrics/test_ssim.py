import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from diffbfr.errors import UsageError
from diffbfr.metrics.ssim import ssim


def pictures(seed: int, noise: float, px: int = 48) -> torch.Tensor:
    """Smooth pictures with some noise: SSIM depends on structure, white noise alone would test little."""
    y, x = np.mgrid[0:px, 0:px] / px
    smooth = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y), x * y], axis=-1) * 90 + 128
    noisy = smooth + np.random.default_rng(seed).normal(size=(3, px, px, 3)) * noise
    return torch.from_numpy(noisy.clip(0, 255).round().astype(np.uint8))


@pytest.mark.parametrize("noise", [1.0, 12.0, 60.0])
def test_equals_scikit_image_for_every_picture_of_a_batch(noise: float) -> None:
    estimate, reference = pictures(0, noise), pictures(1, 2.0)
    expected = [
        structural_similarity(
            b.numpy(),
            a.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
        )
        for a, b in zip(estimate, reference, strict=True)
    ]
    torch.testing.assert_close(
        ssim(estimate, reference), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_equal_pictures_have_similarity_one() -> None:
    torch.testing.assert_close(
        ssim(pictures(0, 5.0), pictures(0, 5.0)), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_order_of_arguments_does_not_matter() -> None:
    torch.testing.assert_close(
        ssim(pictures(0, 9.0), pictures(1, 2.0)), ssim(pictures(1, 2.0), pictures(0, 9.0)), rtol=0, atol=1e-12
    )


def test_constant_pictures_differ_by_the_luminance_term_alone() -> None:
    a, b = torch.full((1, 16, 16, 3), 100.0), torch.full((1, 16, 16, 3), 150.0)
    c_1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c_1) / (100**2 + 150**2 + c_1)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-9)


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(UsageError, match="11 px"):
        ssim(torch.zeros(1, 10, 64, 3), torch.zeros(1, 10, 64, 3))
