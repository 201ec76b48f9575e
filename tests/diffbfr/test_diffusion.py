"""The process and its losses against float64 oracles written another way: Bayes in precisions,
torch.distributions, math.erfc.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffbfr.diffusion import (
    noise_loss,
    noise_of_velocity,
    p_mean_variance,
    posterior_mean,
    predict_y_0,
    q_sample,
    variational_loss,
    velocity,
)
from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import SR3_SCHEDULE, TEM_SCHEDULE

SR3, DDPM = noise_schedule(SR3_SCHEDULE), noise_schedule(TEM_SCHEDULE)
SCHEDULES = pytest.mark.parametrize("schedule", [SR3, DDPM], ids=["sr3", "tem"])


def _images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def _noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _steps(schedule: NoiseSchedule) -> Tensor:
    return torch.tensor([1, 2, schedule.num_steps // 2, schedule.num_steps])


@SCHEDULES
def test_every_image_is_diffused_to_its_own_step_as_eq_2_says(schedule: NoiseSchedule) -> None:
    y_0, noise, t = _images(4, 3, 5, 5), _noise(4, 3, 5, 5), _steps(schedule)
    expected = torch.empty_like(y_0)
    for i, step in enumerate(t.tolist()):
        gamma = math.prod(1 - beta for beta in schedule.beta[1 : step + 1].tolist())
        expected[i] = math.sqrt(gamma) * y_0[i] + math.sqrt(1 - gamma) * noise[i]
    assert torch.allclose(q_sample(y_0, t, schedule, noise), expected, atol=1e-12)
    assert torch.allclose(q_sample(y_0.float(), t, schedule, noise.float()), expected.float(), atol=1e-6)


def test_step_zero_is_the_image_itself() -> None:
    y_0 = _images(2, 3, 4, 4)
    assert torch.equal(q_sample(y_0, torch.zeros(2, dtype=torch.long), SR3, _noise(2, 3, 4, 4)), y_0)


@pytest.mark.parametrize("t", [-1, 1001])
def test_a_step_outside_the_schedule_is_refused(t: int) -> None:
    steps, image = torch.tensor([5, t]), _images(2, 3, 4, 4)
    for call in (q_sample, predict_y_0):
        with pytest.raises(ValueError, match=rf"t=\[5, {t}\]; expected steps in 0\.\.1000"):
            call(image, steps, DDPM, image)


@SCHEDULES
def test_one_step_after_another_is_the_same_as_all_at_once(schedule: NoiseSchedule) -> None:
    mean, variance = 1.0, 0.0
    for alpha in schedule.alpha[1:].tolist():
        mean, variance = math.sqrt(alpha) * mean, alpha * variance + 1 - alpha  # Eq. 1
    assert mean == pytest.approx(math.sqrt(schedule.gamma[-1]), rel=1e-10)
    assert variance == pytest.approx(1 - float(schedule.gamma[-1]), rel=1e-10)


@SCHEDULES
def test_the_image_is_found_again_from_the_noise(schedule: NoiseSchedule) -> None:
    y_0, noise, t = _images(4, 3, 5, 5), _noise(4, 3, 5, 5), _steps(schedule)
    assert torch.allclose(predict_y_0(q_sample(y_0, t, schedule, noise), t, schedule, noise), y_0, atol=1e-9)


def _bayes(y_0: Tensor, y_t: Tensor, t: int, schedule: NoiseSchedule) -> tuple[Tensor, float]:
    """q(y_{t-1} | y_t, y_0) as the product of two Gaussians in y_{t-1}: precisions add."""
    beta, before = float(schedule.beta[t]), float(schedule.gamma[t - 1])
    step, prior = (1 - beta) / beta, 1 / (1 - before)
    variance = 1 / (step + prior)
    return variance * (step * y_t / math.sqrt(1 - beta) + prior * math.sqrt(before) * y_0), variance


@SCHEDULES
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_posterior_is_bayes_rule(schedule: NoiseSchedule, share: float) -> None:
    t = 2 + round(share * (schedule.num_steps - 2))
    y_0, y_t = _images(1, 3, 5, 5), _noise(1, 3, 5, 5)
    mean, variance = _bayes(y_0, y_t, t, schedule)
    assert torch.allclose(posterior_mean(y_0, y_t, torch.tensor([t]), schedule), mean, atol=1e-9)
    assert float(schedule.posterior_variance[t]) == pytest.approx(variance, rel=1e-9)


@SCHEDULES
def test_before_the_first_step_the_posterior_is_the_image(schedule: NoiseSchedule) -> None:
    y_0 = _images(1, 3, 5, 5)
    assert torch.allclose(
        posterior_mean(y_0, _noise(1, 3, 5, 5), torch.tensor([1]), schedule), y_0, atol=1e-9
    )


@SCHEDULES
def test_algorithm_1s_step_is_eq_4_with_the_forward_variance(schedule: NoiseSchedule) -> None:
    y_t, epsilon, t = _noise(4, 3, 5, 5), _noise(4, 3, 5, 5, seed=2), _steps(schedule)
    step = p_mean_variance(y_t, t, schedule, epsilon)
    for i, s in enumerate(t.tolist()):
        alpha, gamma = float(schedule.alpha[s]), float(schedule.gamma[s])
        expected = (y_t[i] - (1 - alpha) / math.sqrt(1 - gamma) * epsilon[i]) / math.sqrt(alpha)
        assert torch.allclose(step.mean[i], expected, atol=1e-10)
        assert float(step.sigma[i]) == pytest.approx(math.sqrt(1 - alpha), rel=1e-10)


@SCHEDULES
def test_eq_4_is_the_posteriors_mean_at_the_predicted_image(schedule: NoiseSchedule) -> None:
    y_t, epsilon, t = _noise(4, 3, 5, 5), _noise(4, 3, 5, 5, seed=2), _steps(schedule)
    expected = posterior_mean(predict_y_0(y_t, t, schedule, epsilon), y_t, t, schedule)
    assert torch.allclose(p_mean_variance(y_t, t, schedule, epsilon).mean, expected, atol=1e-8)


def test_sr3s_step_clamps_the_predicted_image_and_takes_the_posterior_variance() -> None:
    y_t, epsilon, t = 3 * _noise(2, 3, 5, 5), _noise(2, 3, 5, 5, seed=2), torch.tensor([2, 900])
    step = p_mean_variance(y_t, t, SR3, epsilon, variance="posterior", clamp=True)
    for i, s in enumerate(t.tolist()):
        gamma = float(SR3.gamma[s])
        y_0 = ((y_t[i] - math.sqrt(1 - gamma) * epsilon[i]) / math.sqrt(gamma)).clamp(-1, 1)
        mean, variance = _bayes(y_0, y_t[i], s, SR3)
        assert torch.allclose(step.mean[i], mean, atol=1e-9)
        assert float(step.sigma[i]) == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_losses_are_means_per_image_of_the_absolute_or_squared_error() -> None:
    epsilon, noise = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    noise[1] = -3
    assert noise_loss(epsilon, noise, "l1").tolist() == [1, 3]
    assert noise_loss(epsilon, noise, "l2").tolist() == [1, 9]


def _range_of(log_variance: float, t: int) -> float:
    """The network's output that stands for a log-variance at t."""
    low, high = math.log(DDPM.posterior_variance[max(t, 2)]), math.log(DDPM.beta[t])
    return 2 * (log_variance - low) / (high - low) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variational_loss_is_zero_where_the_model_is_the_posterior(dtype: torch.dtype) -> None:
    y_0, noise, t = (
        _images(3, 3, 5, 5, dtype=dtype),
        _noise(3, 3, 5, 5, dtype=dtype),
        torch.tensor([2, 300, 1000]),
    )
    lowest = torch.full_like(y_0, -1)
    loss = variational_loss(lowest, y_0, q_sample(y_0, t, DDPM, noise), t, DDPM, noise)
    assert loss.abs().max() < (1e-4 if dtype == torch.float32 else 1e-9)


def test_the_variational_loss_is_the_divergence_of_two_gaussians_in_bits_a_dimension() -> None:
    y_0, noise, epsilon = _images(3, 3, 4, 4), _noise(3, 3, 4, 4), _noise(3, 3, 4, 4, seed=2)
    t, variance_range = torch.tensor([2, 300, 1000]), _images(3, 3, 4, 4, seed=3) * 1.5
    y_t = q_sample(y_0, t, DDPM, noise)
    loss = variational_loss(variance_range, y_0, y_t, t, DDPM, epsilon)
    for i, s in enumerate(t.tolist()):
        gamma, beta = float(DDPM.gamma[s]), float(DDPM.beta[s])
        mean, variance = _bayes(y_0[i], y_t[i], s, DDPM)
        predicted = (y_t[i] - math.sqrt(1 - gamma) * epsilon[i]) / math.sqrt(gamma)
        share = (variance_range[i] + 1) / 2
        sigma = (
            beta**share * variance ** (1 - share)
        ).sqrt()  # Nichol & Dhariwal: a geometric mean of the two variances
        expected = kl_divergence(
            Normal(mean, math.sqrt(variance)), Normal(_bayes(predicted, y_t[i], s, DDPM)[0], sigma)
        )
        assert float(loss[i]) == pytest.approx(float(expected.mean()) / math.log(2), rel=1e-9)
        step = p_mean_variance(y_t, t, DDPM, epsilon, variance="learned", variance_range=variance_range)
        assert torch.allclose(step.sigma[i], sigma, rtol=1e-9)


def test_the_variational_loss_is_of_the_mean_that_algorithm_1_walks_by_and_clamps_nothing() -> None:
    y_0, noise, t = _images(1, 3, 4, 4), _noise(1, 3, 4, 4), torch.tensor([600])
    y_t, lowest = q_sample(y_0, t, DDPM, noise), torch.full((1, 3, 4, 4), -1.0, dtype=torch.float64)
    beyond = predict_y_0(y_t, t, DDPM, 2 * noise)
    assert float(beyond.abs().max()) > 1
    mean, variance = _bayes(beyond, y_t, 600, DDPM)
    bits = (_bayes(y_0, y_t, 600, DDPM)[0] - mean).square() / (2 * variance) / math.log(2)
    assert float(variational_loss(lowest, y_0, y_t, t, DDPM, 2 * noise)) == pytest.approx(
        float(bits.mean()), rel=1e-6
    )


@pytest.mark.parametrize("end", [-1, 1])
def test_the_ends_of_the_range_are_the_two_variances_of_algorithm_1_and_of_sr3(end: int) -> None:
    y_t, t = _noise(4, 3, 5, 5), torch.tensor([2, 3, 500, 1000])
    wanted = p_mean_variance(y_t, t, DDPM, y_t, variance="beta" if end > 0 else "posterior")
    found = p_mean_variance(y_t, t, DDPM, y_t, variance="learned", variance_range=torch.full_like(y_t, end))
    assert torch.allclose(found.sigma, wanted.sigma.expand_as(y_t), rtol=1e-9)
    assert torch.equal(found.mean, wanted.mean)


def test_a_learned_variance_without_a_range_is_refused() -> None:
    with pytest.raises(UsageError, match="the network gives no range; expected one; take beta or posterior"):
        p_mean_variance(_noise(1, 3, 4, 4), torch.tensor([5]), DDPM, _noise(1, 3, 4, 4), variance="learned")


def _level_probability(level: float, mean: float, sigma: float) -> float:
    """Mass of a Gaussian within half an 8-bit level, by the smaller tail; the outermost levels take all
    that lies beyond.
    """

    def above(x: float) -> float:
        return 0.5 * math.erfc((x - mean) / sigma / math.sqrt(2))

    def below(x: float) -> float:
        return 0.5 * math.erfc((mean - x) / sigma / math.sqrt(2))

    if level <= -1:
        return below(level + 1 / 255)
    if level >= 1:
        return above(level - 1 / 255)
    return (
        above(level - 1 / 255) - above(level + 1 / 255)
        if level > mean
        else below(level + 1 / 255) - below(level - 1 / 255)
    )


def _loss_at_the_first_step(levels: Tensor, mean: float, sigma: float) -> Tensor:
    """variational_loss at t = 1 of a network that predicts the image `mean` with deviation `sigma`."""
    y_0 = levels.view(-1, 1, 1, 1)
    t = torch.ones(len(levels), dtype=torch.long)
    y_t, gamma = torch.zeros_like(y_0), float(DDPM.gamma[1])
    epsilon = (y_t - math.sqrt(gamma) * mean) / math.sqrt(1 - gamma)
    return variational_loss(
        torch.full_like(y_0, _range_of(2 * math.log(sigma), 1)), y_0, y_t, t, DDPM, epsilon
    )


def test_at_the_first_step_the_loss_is_the_likelihood_of_the_8_bit_level() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (0.003, -0.97, 1.0):
        bits = _loss_at_the_first_step(levels, mean, 0.01)
        assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-9)
        for level, value in zip(levels.tolist(), bits.tolist(), strict=True):
            assert value == pytest.approx(
                -math.log2(max(_level_probability(level, mean, 0.01), 1e-12)), rel=1e-6
            )


def test_a_level_far_above_the_prediction_is_as_unlikely_as_one_far_below_also_in_float32() -> None:
    offset = torch.tensor([-8.0, 8.0]) / 127.5  # about six standard deviations
    below, above = _loss_at_the_first_step(offset, 0.0, 0.01).tolist()
    assert above == pytest.approx(below, rel=1e-6)
    assert above == pytest.approx(-math.log2(_level_probability(8 / 127.5, 0.0, 0.01)), rel=1e-3)


def test_only_the_variance_learns_from_the_variational_loss() -> None:
    epsilon, variance_range = (
        _noise(2, 3, 4, 4).requires_grad_(),
        torch.zeros(2, 3, 4, 4, dtype=torch.float64, requires_grad=True),
    )
    t = torch.tensor([1, 500])
    y_0 = _images(2, 3, 4, 4)
    loss = variational_loss(
        variance_range, y_0, q_sample(y_0, t, DDPM, _noise(2, 3, 4, 4, seed=4)), t, DDPM, epsilon
    )
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert epsilon.grad is None
    assert variance_range.grad is not None
    assert bool((variance_range.grad.abs().flatten(1).sum(1) > 0).all())


def test_velocity_and_y_t_give_back_the_noise_and_the_image() -> None:
    generator = torch.Generator().manual_seed(3)
    y_0, noise = (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    level = torch.tensor([0.999, 0.7, 0.1, 0.0067], dtype=torch.float64).view(-1, 1, 1, 1)
    sigma = (1 - level.square()).sqrt()
    y_t = level * y_0 + sigma * noise
    v = velocity(y_0, noise, level)
    torch.testing.assert_close(noise_of_velocity(v, y_t, level), noise)
    torch.testing.assert_close(level * y_t - sigma * v, y_0)
