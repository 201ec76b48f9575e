"""The exact-score study reproduces what the step counts of mode `fast` were chosen by, and reads a sampler's
error off correctly.

The figures to reproduce name neither the images nor the start. With the setting of `exact_score` the eight
errors come within 10 %, where "Algorithm 1" is its loop with the posterior's variance; with sigma_t^2 = 1 -
alpha_t, as the paper prints it, the loop errs less (0.08, 0.08, 0.22 and 2.35 levels). That DDIM and the
respaced process are 16 to 31 times worse is not reproduced: 9 to 23 times here.
"""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffbfr.samplers import p_sample_loop, solve, start_from
from diffbfr.schedule import noise_schedule
from diffbfr.stages import IRM1, IRM2, TEM, ReverseVariance, SamplerSpec, ScheduleSpec, Solver, StageSpec
from diffbfr.step_grid import step_grid
from tests.benchmarks import few_steps
from tests.benchmarks.exact_score import (
    PIXEL_STD,
    SHALLOW,
    Row,
    after_algorithm_1,
    after_solver,
    exact_epsilon,
    modes_of,
    moved_by_clamp,
    study,
)

LOOP = {
    "IRM-1, from noise": 0.23,
    "IRM-2, N_1 = 1000": 0.23,
    "IRM-2, N_1 = 600": 0.36,
    "TEM, N_2 = 100": 2.60,
}
FEW = {"IRM-1, from noise": 0.22, "IRM-2, N_1 = 1000": 0.22, "IRM-2, N_1 = 600": 0.30, "TEM, N_2 = 100": 2.61}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.name: row for row in study()}


@pytest.mark.parametrize("name", LOOP)
def test_the_loop_with_the_posteriors_variance_errs_as_published(rows: dict[str, Row], name: str) -> None:
    assert rows[name].posterior == pytest.approx(LOOP[name], rel=0.1)


@pytest.mark.parametrize("name", FEW)
def test_the_few_steps_of_mode_fast_err_as_published(rows: dict[str, Row], name: str) -> None:
    row = rows[name]
    assert row.few[row.sampler.solver] == pytest.approx(FEW[name], rel=0.1)


def test_algorithm_1_as_printed_errs_less_than_with_the_posteriors_variance(rows: dict[str, Row]) -> None:
    assert [round(rows[name].algorithm_1, 2) for name in LOOP] == [0.08, 0.08, 0.22, 2.35]


def test_a_shallow_start_leaves_what_only_noise_can_mend(rows: dict[str, Row]) -> None:
    """The floors of the deterministic solvers: 1.1 to 1.6 levels for N_1 = 600, 3 to 4 for TEM; more steps
    do not lower them.
    """
    assert 1.1 < rows["IRM-2, N_1 = 600"].few["dpmpp_2m"] < 1.6
    assert round(rows["TEM, N_2 = 100"].few["dpmpp_2m"]) in (3, 4)
    for name, stage in (("IRM-2, N_1 = 600", SHALLOW), ("TEM, N_2 = 100", TEM)):
        modes, many = modes_of(stage), replace(stage.fast, num_evaluations=40)
        floor = modes.error(after_solver(stage, modes, replace(many, solver="dpmpp_2m")))
        assert floor > 0.9 * rows[name].few["dpmpp_2m"]
        assert modes.error(after_solver(stage, modes, replace(many, solver="sde_dpmpp_2m"))) < 0.7 * floor


@pytest.mark.parametrize("name", ["IRM-1, from noise", "IRM-2, N_1 = 1000"])
def test_from_a_deep_start_first_order_solvers_are_an_order_worse(rows: dict[str, Row], name: str) -> None:
    few = rows[name].few
    assert few["dpmpp_2m"] < few["sde_dpmpp_2m"]
    assert 8 < few["ddim"] / few["dpmpp_2m"] < few["ancestral"] / few["dpmpp_2m"] < 31


@pytest.mark.parametrize(
    "stage",
    [IRM1, replace(SHALLOW, unet=replace(SHALLOW.unet, image_px=128))],
    ids=["irm1", "irm2 at 128 px"],
)
def test_the_clamp_of_mode_fast_is_far_below_the_solvers_error(stage: StageSpec) -> None:
    """At 512 px `--clamp` finds 0.01 levels at most; smaller pictures do for a test."""
    assert 0 < moved_by_clamp(stage, stage.fast) < 0.02


def test_more_evaluations_err_less() -> None:
    modes = modes_of(IRM1)
    errors = [
        modes.error(after_solver(IRM1, modes, replace(IRM1.fast, solver="ddim", num_evaluations=n)))
        for n in (10, 20, 40)
    ]
    assert all(more < fewer for fewer, more in pairwise(errors))


def test_the_images_have_their_deviation_and_a_spectrum_of_1_over_f_squared() -> None:
    modes = modes_of(TEM)
    assert float((modes.share * modes.variance).sum()) == pytest.approx(PIXEL_STD**2)
    flat = modes.variance.flatten()
    octave = math.log2(float(flat[-20] / flat[-12]))
    assert octave == pytest.approx(2, abs=0.05)  # eight bands up, twice the frequency, a quarter of the power
    assert bool((modes.start <= modes.variance).all())


# The reading-off, against images that are drawn

SHORT = replace(TEM, schedule=ScheduleSpec(30, 0.01, 0.2), start=20)


def _drawn(count: int, seed: int) -> Tensor:
    modes = modes_of(SHORT)
    generator = torch.Generator().manual_seed(seed)
    return modes.start.sqrt() * torch.randn(
        count, *modes.start.shape, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_variance_after_algorithm_1_is_that_of_drawn_images(variance: ReverseVariance) -> None:
    modes, schedule, count = modes_of(SHORT), noise_schedule(SHORT.schedule), 2000
    generator = torch.Generator().manual_seed(1)

    def noise(t: Tensor) -> Tensor:
        return torch.randn(count, *modes.start.shape, generator=generator, dtype=torch.float64)

    start = start_from(_drawn(count, 2), [SHORT.start] * count, schedule, noise)
    images = p_sample_loop(
        exact_epsilon(modes.variance, schedule),
        start,
        [SHORT.start] * count,
        schedule,
        noise,
        variance=variance,
    )
    ratio = images.square().mean(0) / after_algorithm_1(SHORT, modes, variance)
    assert float((ratio - 1).abs().max()) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmpp_2m", "sde_dpmpp_2m"])
def test_the_variance_after_a_solver_is_that_of_drawn_images(solver: Solver) -> None:
    modes, schedule, count, sampler = (
        modes_of(SHORT),
        noise_schedule(SHORT.schedule),
        2000,
        SamplerSpec(solver, 5, 2.0),
    )
    generator = torch.Generator().manual_seed(3)

    def noise(t: Tensor) -> Tensor:
        return torch.randn(count, *modes.start.shape, generator=generator, dtype=torch.float64)

    start = start_from(_drawn(count, 4), [SHORT.start] * count, schedule, noise)
    grid = step_grid(schedule, SHORT.start, sampler)
    images = solve(
        exact_epsilon(modes.variance, schedule), start, [grid] * count, schedule, sampler, noise, clamp=False
    )
    ratio = images.square().mean(0) / after_solver(SHORT, modes, sampler)
    assert float((ratio - 1).abs().max()) < 5 * math.sqrt(2 / count)


def test_the_table_of_the_results_is_what_the_study_finds(rows: dict[str, Row]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    lines = [
        line.strip("|").split(" | ")
        for line in page.splitlines()
        if line.startswith(("| IRM-1, from", "| IRM-2, N_1", "| TEM, N_2"))
    ]
    assert [cells[0].strip() for cells in lines] == list(rows)
    for cells, row in zip(lines, rows.values(), strict=True):
        written = [float(re.search(r"[\d.]+$", cell.strip())[0]) for cell in cells[1:]]  # type: ignore[index]
        found = [row.algorithm_1, row.posterior, row.few[row.sampler.solver], row.few["dpmpp_2m"]]
        assert written == [round(value, 2) for value in found]
        assert f", {row.sampler.num_evaluations}: " in cells[3]


def test_the_command_prints_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["few_steps", "--evaluations", "12", "6", "5"])
    few_steps.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines[1:]] == ["IRM-1", "IRM-2", "IRM-2", "TEM, "]
    assert [line.split()[-5] for line in lines[1:]] == ["12", "6", "6", "5"]
    assert "*" in lines[1]


def test_irm2_begins_at_the_best_guess_and_tem_at_a_smooth_image() -> None:
    assert float(modes_of(IRM2).start.abs().max()) == 0
    tem = modes_of(TEM)
    kept = (tem.start / tem.variance).flatten()
    assert float(kept[0]) == pytest.approx(1)
    assert float(kept[-4]) < 1e-3
