"""What a stage's network is given: its time, its condition before y_t, and an enlarged condition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffbfr.denoiser import Denoiser, upsample
from tests.diffbfr.tiny import TINY_STAGES, wake


def _image(b: int, px: int, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_irm_hears_the_noise_level_and_tem_the_step() -> None:
    t = torch.tensor([1, 600, 2000])
    assert Denoiser(TINY_STAGES["irm1"]).time_of(t).tolist() == pytest.approx([1 - 5e-7, 0.6375, 0.00662], abs=5e-5)
    assert Denoiser(TINY_STAGES["tem"]).time_of(torch.tensor([1, 600])).tolist() == [1.0, 600.0]


def test_the_condition_comes_before_y_t() -> None:
    denoiser = wake(Denoiser(TINY_STAGES["irm1"])).eval()
    y_t, condition, t = _image(2, 8), _image(2, 8, seed=1), torch.tensor([5, 1500])
    expected = denoiser.net(torch.cat([condition, y_t], 1), denoiser.time_of(t))
    assert torch.equal(denoiser.epsilon(y_t, t, condition), expected)
    assert not torch.allclose(denoiser.epsilon(condition, t, y_t), expected, atol=1e-3)


def test_the_variance_range_is_left_out_of_the_noise() -> None:
    denoiser = wake(Denoiser(TINY_STAGES["tem"])).eval()
    y_t, t = _image(2, 32), torch.tensor([5, 90])
    output = denoiser(y_t, t.float(), None)
    assert output.shape == (2, 6, 32, 32)
    assert torch.equal(denoiser.epsilon(y_t, t, None), output[:, :3])


def test_a_network_that_says_the_velocity_is_read_as_noise() -> None:
    denoiser = wake(Denoiser(replace(TINY_STAGES["irm1"], predicts="velocity"))).eval()
    y_t, condition, t = _image(3, 8), _image(3, 8, seed=1), torch.tensor([5, 600, 2000])
    v = denoiser(y_t, denoiser.time_of(t), condition)
    gamma = denoiser.schedule.gamma[t].view(-1, 1, 1, 1)
    y_0 = gamma.sqrt() * y_t - (1 - gamma).sqrt() * v  # Salimans & Ho: the image that a velocity stands for
    expected = (y_t - gamma.sqrt() * y_0) / (1 - gamma).sqrt()
    assert torch.allclose(denoiser.epsilon(y_t, t, condition).double(), expected, atol=1e-5)


def test_enlarging_keeps_the_range_and_what_is_flat() -> None:
    assert torch.allclose(upsample(torch.full((1, 3, 8, 8), 0.3), 32), torch.full((1, 3, 32, 32), 0.3), atol=1e-6)
    edges = torch.ones(1, 3, 8, 8)
    edges[..., ::2] = -1
    enlarged = upsample(edges, 32)
    assert enlarged.shape == (1, 3, 32, 32)
    assert (float(enlarged.min()), float(enlarged.max())) == (-1, 1)


def _cubic(x: float, a: float = -0.75) -> float:
    """Keys' kernel with the tension that OpenCV and torch share."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_enlarging_is_bicubic_and_centred() -> None:
    image = 0.5 * _image(1, 8)
    matrix = torch.zeros(32, 8)
    for i in range(32):
        place = (i + 0.5) / 4 - 0.5
        for j in range(-2, 10):
            matrix[i, min(max(j, 0), 7)] += _cubic(place - j)
    assert torch.allclose(upsample(image, 32), (matrix @ image @ matrix.T).clamp(-1, 1), atol=1e-5)
