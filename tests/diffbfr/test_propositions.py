"""Propositions 1 and 2 in numbers: what a truncated start gains in the bound, and how diffusing both sides
draws distributions together.

Proposition 1 (3 in the appendix) compares the first term of the evidence lower bound, L_T, of two starts. Its
proof leaves out from where on it holds; here that step is found, too. Proposition 2 (4 in the appendix)
argues with the Frechet distance; on Gaussian data the distance and the reverse process are known exactly.
Everything is float64.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffbfr.degradation import PRESETS, degrade, draw
from diffbfr.diffusion import q_sample
from diffbfr.images import decode, resize, to_tensor
from diffbfr.samplers import p_sample_loop
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import SR3_SCHEDULE, TEM, TEM_SCHEDULE
from diffbfr.synthetic import render_face
from diffbfr.variant import apply_target

SR3, DDPM = noise_schedule(SR3_SCHEDULE), noise_schedule(TEM_SCHEDULE)
STEPS = (1, 2, 10, 50, 200, 600, 1000, 1400, 1800, 2000)
TABLE_3 = (200, 600, 1000, 1400, 1800)
PX = 64


# Proposition 1


def _l_t_ddpm(y_0: Tensor, gamma: float) -> float:
    """Eq. 17 in closed form: the divergence of N(sqrt(gamma) y_0, (1 - gamma) I) from N(0, I), in nats."""
    return 0.5 * (gamma * float(y_0.square().sum()) - y_0.numel() * (gamma + math.log1p(-gamma)))


def _l_t_irm(y_0: Tensor, x: Tensor, gamma: float) -> float:
    """Eq. 19, the closed form of Eq. 18, in nats."""
    return 0.5 * gamma / (1 - gamma) * float((x - y_0).square().sum())


def _face(seed: int) -> tuple[Tensor, Tensor]:
    """A face y_0 and its degradation x by Eq. 13, brought back to the face's size; (1, 3, PX, PX) in [-1,
    1].
    """
    spec = PRESETS["paper"].at(PX)
    hq = render_face(seed, PX).pixels
    params = draw(spec, seed)
    lq = resize(decode(degrade(hq, params, spec), min_px=1).pixels, PX, "bicubic")
    return to_tensor(apply_target(hq, params)).double(), to_tensor(lq).double()


FACES = [_face(seed) for seed in range(6)]


def _q(image: Tensor, t: int) -> Normal:
    """q(y_t | image), Eq. 2 and 18, from the forward process itself: where noise 0 leads, and how far
    noise 1 leads from there.
    """
    steps = torch.tensor([t])
    mean = q_sample(image, steps, SR3, torch.zeros_like(image))
    return Normal(mean, q_sample(image, steps, SR3, torch.ones_like(image)) - mean)


@pytest.mark.parametrize("t", STEPS)
def test_eq_17_and_19_are_the_divergences_that_eq_16_and_18_define(t: int) -> None:
    gamma = float(SR3.gamma[t])
    for y_0, x in FACES[:3]:
        from_noise = float(kl_divergence(_q(y_0, t), Normal(torch.zeros_like(y_0), 1.0)).sum())
        from_image = float(kl_divergence(_q(y_0, t), _q(x, t)).sum())
        assert _l_t_ddpm(y_0, gamma) == pytest.approx(from_noise, rel=1e-9)
        assert _l_t_irm(y_0, x, gamma) == pytest.approx(from_image, rel=1e-6)


@pytest.mark.parametrize("t", TABLE_3)
def test_a_start_from_a_degraded_face_is_the_better_bound_at_every_n_1_of_table_3(t: int) -> None:
    """Eq. 20, and with it Eq. 10 and 14: the other terms of Eq. 15 are the same for both starts."""
    gamma = float(SR3.gamma[t])
    for y_0, x in FACES:
        assert _l_t_ddpm(y_0, gamma) > _l_t_irm(y_0, x, gamma)


@pytest.mark.parametrize("t", STEPS)
def test_the_nearer_the_condition_the_better_the_bound(t: int) -> None:
    """What section 4.3 concludes: a better x~'_0 is a better start; the term falls with the square of the
    distance, to nothing at y_0.
    """
    gamma = float(SR3.gamma[t])
    for y_0, x in FACES:
        terms = [_l_t_irm(y_0, y_0 + share * (x - y_0), gamma) for share in (1.0, 0.5, 0.25, 0.0)]
        assert terms[1] == pytest.approx(terms[0] / 4)
        assert terms[2] == pytest.approx(terms[0] / 16)
        assert terms[3] == 0


def _largest_distance(y_0: Tensor, gamma: float) -> float:
    """||x - y_0||^2 at which Eq. 20 turns: Eq. 17 and 19 set equal."""
    return 2 * (1 - gamma) / gamma * _l_t_ddpm(y_0, gamma)


@pytest.mark.parametrize("t", STEPS)
def test_eq_20_holds_up_to_a_distance_and_not_beyond(t: int) -> None:
    gamma, (y_0, x) = float(SR3.gamma[t]), FACES[0]
    edge = math.sqrt(_largest_distance(y_0, gamma) / float((x - y_0).square().sum()))
    for share, holds in ((0.99, True), (1.01, False)):
        assert (_l_t_ddpm(y_0, gamma) >= _l_t_irm(y_0, y_0 + share * edge * (x - y_0), gamma)) is holds


def test_the_distance_that_eq_20_allows_grows_with_t_up_to_that_of_a_blank_image() -> None:
    """Near t = 0 both starts are the image and noise costs only its logarithm; for T to infinity x must be
    nearer than mid grey.
    """
    y_0 = FACES[0][0]
    allowed = [_largest_distance(y_0, float(SR3.gamma[t])) for t in range(1, 2001)]
    peak = max(range(2000), key=allowed.__getitem__)
    assert all(after > before for before, after in pairwise(allowed[: peak + 1]))
    assert allowed[0] < 0.01 * float(y_0.square().sum())
    assert allowed[-1] == pytest.approx(float(y_0.square().sum()), rel=1e-3)


def test_for_degraded_faces_eq_20_holds_from_a_shallow_start_on() -> None:
    first = [
        next(
            t
            for t in range(1, 2001)
            if _l_t_ddpm(y_0, float(SR3.gamma[t])) >= _l_t_irm(y_0, x, float(SR3.gamma[t]))
        )
        for y_0, x in FACES
    ]
    assert max(first) < 200  # the shallowest N_1 of Table 3
    assert min(first) > 1  # and not from any start, as the proposition has it


# Proposition 2

DIMENSIONS = 6  # one 3 x 1 x 2 image


def _gaussian(seed: int, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Gaussian data with correlated pixels."""
    generator = torch.Generator().manual_seed(seed)
    factor = (
        scale
        * torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
        / math.sqrt(DIMENSIONS)
    )
    mean = 0.3 * torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64)
    return mean, factor @ factor.T + 0.01 * torch.eye(DIMENSIONS, dtype=torch.float64)


HQ, LQ = _gaussian(1, 0.5), _gaussian(2, 0.3)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _frechet(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1^(1/2) C_2 C_1^(1/2))^(1/2)), the FID of the paper on the
    pixels themselves.
    """
    root = _root(one[1])
    cross = _root(root @ other[1] @ root)
    return float((one[0] - other[0]).square().sum() + torch.trace(one[1] + other[1] - 2 * cross))


def _diffused(data: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, Tensor]:
    """Moments of y_t where y_0 has those of `data` (Eq. 2)."""
    gamma = DDPM.gamma[t]
    return gamma.sqrt() * data[0], gamma * data[1] + (1 - gamma) * torch.eye(DIMENSIONS, dtype=torch.float64)


def test_the_frechet_distance_is_zero_for_equals_and_squared_for_shifted_ones() -> None:
    assert _frechet(HQ, HQ) == pytest.approx(0, abs=1e-9)
    shift = torch.full((DIMENSIONS,), 0.5, dtype=torch.float64)
    assert _frechet(HQ, (HQ[0] + shift, HQ[1])) == pytest.approx(0.25 * DIMENSIONS)
    one, other = (
        (torch.zeros(1).double(), torch.tensor([[4.0]]).double()),
        (torch.zeros(1).double(), torch.tensor([[9.0]]).double()),
    )
    assert _frechet(one, other) == pytest.approx(1)


def test_diffusing_both_sides_draws_them_together_step_by_step() -> None:
    """Eq. 22, for every N and not only a large one; at T next to nothing is left."""
    distances = [_frechet(LQ, HQ), *(_frechet(_diffused(LQ, t), _diffused(HQ, t)) for t in range(1, 1001))]
    assert all(after < before for before, after in pairwise(distances))
    assert distances[-1] < 1e-3 * distances[0]


def _exact_epsilon(data: tuple[Tensor, Tensor], schedule: NoiseSchedule, y_t: Tensor, t: Tensor) -> Tensor:
    """E[noise | y_t] of Gaussian data: what the network of Eq. 11 learns, all images at one step."""
    gamma = schedule.gamma[int(t[0])]
    mean, covariance = _diffused(data, int(t[0]))
    flat = (y_t.flatten(1) - mean) @ torch.linalg.inv(covariance) * (1 - gamma).sqrt()
    return flat.view_as(y_t)


def _polished(data: tuple[Tensor, Tensor], n_2: int, count: int = 4000) -> tuple[Tensor, Tensor]:
    """Moments of `data` after TEM: diffused to N_2 and denoised by the loop of Algorithm 1 with the exact
    denoiser of HQ images.

    Starts are drawn in mirrored pairs, so that their mean is exact.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(count // 2, DIMENSIONS, generator=generator, dtype=torch.float64)
    mean, covariance = _diffused(data, n_2)
    y = mean + torch.cat([half, -half]) @ torch.linalg.cholesky(covariance).T

    def noise(t: Tensor) -> Tensor:
        return torch.randn(len(t), 3, 1, 2, generator=generator, dtype=torch.float64)

    images = p_sample_loop(
        lambda y_t, t: _exact_epsilon(HQ, DDPM, y_t, t), y.view(-1, 3, 1, 2), [n_2] * count, DDPM, noise
    ).flatten(1)
    return images.mean(0), torch.cov(images.T)


@pytest.mark.parametrize("n_2", [80, 100, 120, 150])
def test_tem_brings_restored_images_nearer_to_the_real_ones_at_every_n_2_of_table_4(n_2: int) -> None:
    """Eq. 12, 21 and 24, with y_0 the real images after the same walk."""
    before, diffused = _frechet(LQ, HQ), _frechet(_diffused(LQ, n_2), _diffused(HQ, n_2))
    x_0, y_0 = _polished(LQ, n_2), _polished(HQ, n_2)
    assert _frechet(x_0, HQ) < 0.98 * before
    assert _frechet(x_0, y_0) < diffused < before
    assert _frechet(y_0, HQ) < 0.02 * before


def test_the_walk_back_draws_together_by_more_than_eq_23_allows() -> None:
    """Eq. 23 bounds the change on the way back by that on the way out; here it is larger, and downwards:
    Eq. 24 does not need the bound.
    """
    before, diffused = _frechet(LQ, HQ), _frechet(_diffused(LQ, TEM.start), _diffused(HQ, TEM.start))
    back = _frechet(_polished(LQ, TEM.start), _polished(HQ, TEM.start))
    assert diffused - back > before - diffused > 0


@pytest.mark.slow
def test_the_deeper_tem_starts_the_nearer_it_comes_and_the_less_of_its_input_is_left() -> None:
    distances = [_frechet(_polished(LQ, n_2), HQ) for n_2 in (TEM.start, 300, 1000)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.02 * _frechet(LQ, HQ)
