"""Schedules: golden values, and every table against another way to compute it."""

import math

import pytest
import torch

from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule, noise_schedule
from diffbfr.stages import SR3_SCHEDULE, TEM_SCHEDULE, ScheduleSpec

SCHEDULES = pytest.mark.parametrize(
    "spec", [SR3_SCHEDULE, TEM_SCHEDULE, ScheduleSpec(2, 0.1, 0.2)], ids=["sr3", "tem", "shortest"]
)


def _tables(schedule: NoiseSchedule) -> list[torch.Tensor]:
    return [schedule.beta, schedule.alpha, schedule.gamma, schedule.half_log_snr, schedule.posterior_variance]


@pytest.mark.parametrize(
    ("spec", "t", "expected"),
    [
        (SR3_SCHEDULE, 200, 0.9513),
        (SR3_SCHEDULE, 600, 0.6375),
        (SR3_SCHEDULE, 1000, 0.2860),
        (SR3_SCHEDULE, 1400, 0.0858),
        (SR3_SCHEDULE, 1800, 0.0172),
        (SR3_SCHEDULE, 2000, 0.00662),
        (TEM_SCHEDULE, 80, 0.9651),
        (TEM_SCHEDULE, 100, 0.9471),
        (TEM_SCHEDULE, 120, 0.9257),
        (TEM_SCHEDULE, 150, 0.8879),
    ],
)
def test_the_square_root_of_gamma_has_its_golden_values(spec: ScheduleSpec, t: int, expected: float) -> None:
    half_a_digit = 0.5 * 10 ** -len(str(expected).partition(".")[2])
    assert math.sqrt(noise_schedule(spec).gamma[t]) == pytest.approx(expected, abs=half_a_digit)


@SCHEDULES
def test_row_zero_is_the_clean_image_and_rows_are_the_papers_steps(spec: ScheduleSpec) -> None:
    schedule = noise_schedule(spec)
    assert schedule.num_steps == spec.num_steps
    assert all(
        table.shape == (spec.num_steps + 1,) and table.dtype == torch.float64 for table in _tables(schedule)
    )
    assert [float(table[0]) for table in _tables(schedule)] == [0, 1, 1, math.inf, 0]
    assert (float(schedule.beta[1]), float(schedule.beta[-1])) == (spec.beta_1, spec.beta_T)
    assert torch.allclose(
        schedule.beta[1:].diff(),
        torch.tensor((spec.beta_T - spec.beta_1) / (spec.num_steps - 1)).double(),
        atol=1e-15,
    )


@SCHEDULES
def test_gamma_is_the_product_of_all_alphas_so_far(spec: ScheduleSpec) -> None:
    schedule = noise_schedule(spec)
    logs = [math.log1p(-float(beta)) for beta in schedule.beta]
    for t in sorted({1, 2, spec.num_steps // 2, spec.num_steps}):
        assert float(schedule.gamma[t]) == pytest.approx(math.exp(math.fsum(logs[: t + 1])), rel=1e-12)


@SCHEDULES
def test_half_log_snr_is_that_of_eq_2_and_falls(spec: ScheduleSpec) -> None:
    schedule = noise_schedule(spec)
    for t in (1, spec.num_steps // 2, spec.num_steps):
        gamma = float(schedule.gamma[t])
        assert float(schedule.half_log_snr[t]) == pytest.approx(
            math.log(math.sqrt(gamma) / math.sqrt(1 - gamma)), rel=1e-9
        )
    assert bool((schedule.half_log_snr.diff() < 0).all())


@SCHEDULES
def test_the_posteriors_precision_is_the_sum_of_the_steps_and_the_priors(spec: ScheduleSpec) -> None:
    schedule = noise_schedule(spec)
    assert float(schedule.posterior_variance[1]) == 0
    for t in sorted({2, spec.num_steps // 2 + 1, spec.num_steps}):
        beta, before = float(schedule.beta[t]), float(schedule.gamma[t - 1])
        assert float(schedule.posterior_variance[t]) == pytest.approx(
            1 / ((1 - beta) / beta + 1 / (1 - before)), rel=1e-9
        )


@pytest.mark.parametrize(
    ("num_steps", "beta_1", "beta_T"), [(1, 1e-4, 2e-2), (10, 0.0, 0.1), (10, 0.2, 0.1), (10, 0.1, 1.0)]
)
def test_an_impossible_schedule_is_refused(num_steps: int, beta_1: float, beta_T: float) -> None:
    with pytest.raises(UsageError, match="schedule has"):
        ScheduleSpec(num_steps, beta_1, beta_T)
