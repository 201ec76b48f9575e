import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from skimage.metrics import peak_signal_noise_ratio

from diffbfr.errors import UsageError
from diffbfr.metrics.psnr import psnr


def pictures(seed: int, count: int = 3, px: int = 24) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, size=(count, px, px, 3), dtype=np.uint8)
    )


def test_equals_scikit_image_for_every_picture_of_a_batch() -> None:
    estimate, reference = pictures(0), pictures(1)
    expected = [
        peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=255)
        for a, b in zip(estimate, reference, strict=True)
    ]
    torch.testing.assert_close(
        psnr(estimate, reference), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_one_level_everywhere_is_48_13_db() -> None:
    reference = torch.full((1, 8, 8, 3), 100, dtype=torch.uint8)
    assert psnr(reference + 1, reference).item() == pytest.approx(20 * math.log10(255), abs=1e-12)


def test_equal_pictures_are_infinitely_good() -> None:
    assert psnr(pictures(0), pictures(0)).isinf().all()


def test_uint8_and_float_pixels_give_one_number() -> None:
    torch.testing.assert_close(
        psnr(pictures(0), pictures(1)), psnr(pictures(0).float(), pictures(1).float()), rtol=0, atol=0
    )


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises((UsageError, TypeCheckError)):  # shapes are checked twice under test
        psnr(pictures(0, px=24), pictures(0, px=25))
