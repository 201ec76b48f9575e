"""What a stage's network is given: its time, its condition before y_t, and an enlarged condition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffbfr.diffusion import predict_y_0
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.stages import StageName
from tests.diffbfr.tiny import TINY_STAGES, wake


def _image(b: int, px: int, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_irm_hears_the_noise_level_and_tem_the_step() -> None:
    t = torch.tensor([1, 600, 2000])
    assert Denoiser(TINY_STAGES["irm1"]).time_of(t).tolist() == pytest.approx(
        [1 - 5e-7, 0.6375, 0.00662], abs=5e-5
    )
    assert Denoiser(TINY_STAGES["tem"]).time_of(torch.tensor([1, 600])).tolist() == [1.0, 600.0]


def test_a_network_that_counts_its_steps_from_zero_hears_t_minus_one() -> None:
    tem = TINY_STAGES["tem"]
    denoiser = Denoiser(replace(tem, unet=replace(tem.unet, first_step=0)))
    assert denoiser.time_of(torch.tensor([1, 600])).tolist() == [0.0, 599.0]


def test_the_condition_comes_before_y_t() -> None:
    denoiser = wake(Denoiser(TINY_STAGES["irm1"])).eval()
    y_t, condition, t = _image(2, 8), _image(2, 8, seed=1), torch.tensor([5, 1500])
    expected = denoiser.net(torch.cat([condition, y_t], 1), denoiser.time_of(t))
    assert torch.allclose(denoiser.epsilon(y_t, t, condition), expected, atol=1e-5)
    assert not torch.allclose(denoiser.epsilon(condition, t, y_t), expected, atol=1e-3)


def test_the_variance_range_is_left_out_of_the_noise() -> None:
    denoiser = wake(Denoiser(TINY_STAGES["tem"])).eval()
    y_t, t = _image(2, 32), torch.tensor([5, 90])
    output = denoiser(y_t, t.float(), None)
    assert output.shape == (2, 6, 32, 32)
    assert torch.allclose(denoiser.epsilon(y_t, t, None), output[:, :3], atol=1e-5)


def test_the_variance_range_is_given_after_the_noise_where_it_is_asked_for() -> None:
    denoiser = wake(Denoiser(replace(TINY_STAGES["tem"], predicts="velocity"))).eval()
    y_t, t = _image(2, 32), torch.tensor([5, 90])
    estimate = denoiser.estimate(y_t, t, None)
    assert torch.equal(estimate[:, :3], denoiser.epsilon(y_t, t, None))
    assert torch.allclose(estimate[:, 3:], denoiser(y_t, t.float(), None)[:, 3:], atol=1e-5)
    irm1, low = wake(Denoiser(TINY_STAGES["irm1"])).eval(), _image(2, 8)
    assert irm1.estimate(low, t, low).shape == (2, 3, 8, 8)


def test_bfloat16_rounds_what_the_network_says_and_no_level() -> None:
    """Near the image sqrt(gamma) = 0.9999 would become 1 in bfloat16. A fresh network says 0, so that
    levels are all there is.
    """
    denoiser = Denoiser(replace(TINY_STAGES["irm1"], predicts="velocity", prior_std=0.125)).eval()
    y_t, condition, t = _image(2, 8), _image(2, 8, seed=1), torch.tensor([20, 1500])
    exact = denoiser.epsilon(y_t, t, condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert denoiser.net(torch.cat([condition, y_t], 1), denoiser.time_of(t)).dtype == torch.bfloat16
        assert torch.equal(denoiser.epsilon(y_t, t, condition), exact)


@pytest.mark.parametrize("name", ["irm1", "tem"])
def test_the_noise_in_one_image_is_bitwise_the_same_in_any_batch(name: StageName) -> None:
    denoiser = wake(Denoiser(TINY_STAGES[name])).eval()
    y_t, t = _image(5, denoiser.spec.px), torch.tensor([5, 90, 700, 1, 1000])
    condition = _image(5, 8, seed=1) if name == "irm1" else None
    together = denoiser.epsilon(y_t, t, condition)
    for chosen in ([2], [4, 0], [3, 1, 2]):
        some = denoiser.epsilon(y_t[chosen], t[chosen], None if condition is None else condition[chosen])
        assert torch.equal(some, together[chosen])


@pytest.mark.parametrize("name", ["irm1", "tem"])
@torch.no_grad()
def test_a_network_in_bfloat16_estimates_in_float32_what_it_estimates_whole(name: StageName) -> None:
    denoiser = wake(Denoiser(TINY_STAGES[name])).eval()
    y_t, t = _image(2, denoiser.spec.px), torch.tensor([5, 90])
    condition = _image(2, 8, seed=1) if name == "irm1" else None
    whole = denoiser.ready("cpu").estimate(y_t, t, condition)
    half = denoiser.ready("cpu", "bfloat16").estimate(y_t, t, condition)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert torch.allclose(half, whole, atol=0.05 * float(whole.abs().max()))


def test_a_velocity_about_mid_grey_with_deviation_one_is_that_of_salimans_and_ho() -> None:
    denoiser = wake(Denoiser(replace(TINY_STAGES["tem"], predicts="velocity"))).eval()
    y_t, t = _image(3, 32), torch.tensor([5, 60, 1000])
    v = denoiser(y_t, t.float(), None)[:, :3]
    gamma = denoiser.schedule.gamma[t].view(-1, 1, 1, 1)
    y_0 = gamma.sqrt() * y_t - (1 - gamma).sqrt() * v
    expected = (y_t - gamma.sqrt() * y_0) / (1 - gamma).sqrt()
    assert torch.allclose(denoiser.epsilon(y_t, t, None).double(), expected, atol=1e-5)


@pytest.mark.parametrize("prior_std", [0.125, 0.5, 1.0])
def test_a_velocity_about_the_condition_is_the_preconditioning_of_karras(prior_std: float) -> None:
    denoiser = wake(Denoiser(replace(TINY_STAGES["irm1"], predicts="velocity", prior_std=prior_std))).eval()
    y_t, condition, t = _image(3, 8), _image(3, 8, seed=1), torch.tensor([5, 600, 2000])
    output = denoiser(y_t, denoiser.time_of(t), condition)
    gamma = denoiser.schedule.gamma[t].view(-1, 1, 1, 1)
    sigma = ((1 - gamma) / gamma).sqrt()  # Karras et al. 2022, Table 1: noise over a signal of scale one
    c_skip = prior_std**2 / (sigma**2 + prior_std**2)
    c_out = sigma * prior_std / (sigma**2 + prior_std**2).sqrt()
    y_0 = condition + c_skip * (y_t / gamma.sqrt() - condition) - c_out * output
    expected = (y_t - gamma.sqrt() * y_0) / (1 - gamma).sqrt()
    assert torch.allclose(denoiser.epsilon(y_t, t, condition).double(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["irm1", "tem"])
def test_the_noise_is_found_by_a_network_that_says_its_target(name: StageName) -> None:
    denoiser = Denoiser(replace(TINY_STAGES[name], predicts="velocity", prior_std=0.3))
    y_0, noise, condition = (_image(2, 8, seed=seed) for seed in range(3))
    known = condition if name == "irm1" else None
    level = denoiser.schedule.gamma[torch.tensor([3, 900])].sqrt().float().view(-1, 1, 1, 1)
    y_t = level * y_0 + (1 - level.square()).sqrt() * noise
    assert torch.allclose(
        denoiser.noise_of(denoiser.target(y_0, noise, level, known), y_t, level, known), noise, atol=1e-4
    )


def test_a_fresh_network_that_says_the_velocity_gives_the_condition_back() -> None:
    denoiser = Denoiser(replace(TINY_STAGES["irm1"], predicts="velocity", prior_std=0.125)).eval()
    condition, noise, t = _image(2, 8), _image(2, 8, seed=1), torch.tensor([2000, 2000])
    y_0 = predict_y_0(noise, t, denoiser.schedule, denoiser.epsilon(noise, t, condition))
    assert torch.allclose(y_0, condition, atol=1e-3)


def test_enlarging_keeps_the_range_and_what_is_flat() -> None:
    assert torch.allclose(
        upsample(torch.full((1, 3, 8, 8), 0.3), 32), torch.full((1, 3, 32, 32), 0.3), atol=1e-6
    )
    edges = torch.ones(1, 3, 8, 8)
    edges[..., ::2] = -1
    enlarged = upsample(edges, 32)
    assert enlarged.shape == (1, 3, 32, 32)
    assert (float(enlarged.min()), float(enlarged.max())) == (-1, 1)
    free = upsample(edges, 32, clamp=False)
    assert float(free.abs().max()) > 1.05
    assert torch.equal(free.clamp(-1, 1), enlarged)


def test_the_kernel_that_enlarges_is_an_option() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 8
    between = upsample(ramp, 16, "bilinear")[0, 0, 0]
    assert torch.allclose(between[1:-1:2], ramp[0, 0, 0, :-1] + 0.25 / 8, atol=1e-6)
    assert not torch.allclose(upsample(_image(1, 8), 32, "bilinear"), upsample(_image(1, 8), 32), atol=1e-2)


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
