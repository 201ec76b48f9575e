"""Table 6 is pinned: its rows, and the parameters and operations of the networks that they describe."""

from dataclasses import replace

import pytest

from diffbfr.cost.flops import evaluation_flops, num_parameters
from diffbfr.errors import UsageError
from diffbfr.schedule import noise_schedule
from diffbfr.stages import (
    IRM1,
    IRM1_TINY,
    IRM2,
    IRM2_SR3,
    IRM2_TINY,
    TEM,
    TEM_DIFFACE,
    TEM_TINY,
    SamplerSpec,
    ScheduleSpec,
    StageSpec,
)

ONE_BLOCK = replace(IRM2.unet, res_blocks=(1,) * 7)
TEM_BY_RATES = replace(TEM.unet, attention_px=(512 // 32, 512 // 16, 512 // 8))


@pytest.mark.parametrize(
    ("stage", "px", "num_steps", "betas", "start", "multipliers", "channels", "inner", "attention"),
    [
        (IRM1, 128, 2000, (1e-6, 1e-2), 2000, (1, 2, 4, 8, 8), (6, 3), 64, (16,)),
        (IRM2, 512, 2000, (1e-6, 1e-2), 1000, (1, 2, 4, 8, 8, 16, 16), (6, 3), 64, (16,)),
        (TEM, 512, 1000, (1e-4, 2e-2), 100, (1, 2, 4, 8, 8, 16, 16), (3, 6), 32, (32, 16, 8)),
    ],
    ids=["irm1", "irm2", "tem"],
)
def test_the_constants_are_the_columns_of_table_6(
    stage: StageSpec,
    px: int,
    num_steps: int,
    betas: tuple[float, float],
    start: int,
    multipliers: tuple[int, ...],
    channels: tuple[int, int],
    inner: int,
    attention: tuple[int, ...],
) -> None:
    unet = stage.unet
    assert (stage.px, stage.schedule, stage.start, stage.loss) == (
        px,
        ScheduleSpec(num_steps, *betas),
        start,
        "l1",
    )
    assert (unet.channel_multipliers, (unet.in_channels, unet.out_channels)) == (multipliers, channels)
    assert (unet.inner_channels, unet.attention_px, unet.patch_px) == (inner, attention, 1)


@pytest.mark.parametrize(
    ("stage", "groups", "dropout", "time", "scale_shift", "head_channels", "res_blocks"),
    [
        (IRM1, 32, 0.2, "noise_level", False, None, (2, 2, 2, 2, 2)),
        (IRM2, 16, 0.0, "noise_level", False, None, (2, 2, 2, 2, 2, 2, 2)),
        (TEM, 32, 0.0, "step", True, 64, (1, 2, 2, 2, 2, 3, 4)),
    ],
    ids=["irm1", "irm2", "tem"],
)
def test_what_table_6_leaves_open_is_that_of_the_two_families_it_shows(
    stage: StageSpec,
    groups: int,
    dropout: float,
    time: str,
    scale_shift: bool,
    head_channels: int | None,
    res_blocks: tuple[int, ...],
) -> None:
    """SR3 from 16 to 128 and from 64 to 512 px for the IRMs; for TEM guided diffusion's prior of faces at
    512 px.
    """
    unet = stage.unet
    assert (unet.norm_groups, unet.dropout, unet.time) == (groups, dropout, time)
    assert (unet.scale_shift, unet.head_channels, unet.res_blocks) == (scale_shift, head_channels, res_blocks)
    assert (stage.predicts, stage.prior_std) == ("noise", 1.0)


def test_the_networks_have_table_6s_parameters() -> None:
    assert num_parameters(IRM1.unet) == 97_807_491
    assert num_parameters(IRM2.unet) == 427_629_187
    assert num_parameters(ONE_BLOCK) == 291_473_603
    assert num_parameters(TEM.unet) == 159_788_454


@pytest.mark.slow
def test_the_networks_have_table_6s_operations() -> None:
    gflop = {
        name: evaluation_flops(spec) / 1e9
        for name, spec in (("irm1", IRM1.unet), ("irm2", IRM2.unet), ("one", ONE_BLOCK), ("tem", TEM.unet))
    }
    assert gflop["irm1"] == pytest.approx(92.35, abs=0.005)
    assert gflop["irm2"] == pytest.approx(1529.5, abs=0.05)
    assert gflop["one"] == pytest.approx(1064, abs=0.5)
    assert gflop["tem"] == pytest.approx(378.3, abs=0.05)


@pytest.mark.slow
def test_enlarging_and_convolving_in_one_runs_fewer_operations() -> None:
    gflop = [evaluation_flops(stage.unet, folded=True) / 1e9 for stage in (IRM1, IRM2, TEM)]
    assert gflop == pytest.approx([84.88, 1383.16, 341.72], abs=0.005)


def test_tems_attention_read_as_rates_would_be_another_network() -> None:
    assert evaluation_flops(TEM_BY_RATES) / 1e9 == pytest.approx(473.65, abs=0.005)
    assert num_parameters(TEM_BY_RATES) == 151_642_022


def test_only_tem_learns_its_variance() -> None:
    assert [stage.learns_range for stage in (IRM1, IRM2, TEM, IRM1_TINY, IRM2_TINY, TEM_TINY)] == [
        False,
        False,
        True,
    ] * 2


def test_mode_fast_takes_20_and_10_and_8_evaluations() -> None:
    assert [(stage.fast.solver, stage.fast.num_evaluations) for stage in (IRM1, IRM2, TEM)] == [
        ("dpmpp_2m", 20),
        ("dpmpp_2m", 10),
        ("sde_dpmpp_2m", 8),
    ]


def test_tiny_stages_differ_from_the_papers_in_the_network_what_it_predicts_and_how_they_start() -> None:
    for tiny, whole in ((IRM1_TINY, IRM1), (IRM2_TINY, IRM2), (TEM_TINY, TEM)):
        assert (
            replace(
                tiny, unet=whole.unet, predicts="noise", prior_std=1.0, start=whole.start, fast=whole.fast
            )
            == whole
        )


def test_a_deep_start_takes_the_deterministic_solver_and_a_shallow_one_the_stochastic() -> None:
    for stage in (IRM1, IRM2, TEM, IRM1_TINY, IRM2_TINY, TEM_TINY):
        gamma = float(noise_schedule(stage.schedule).gamma[stage.start])
        assert stage.fast.solver == ("dpmpp_2m" if gamma < 0.1 else "sde_dpmpp_2m")


def test_a_tiny_start_hides_no_more_of_an_image_than_the_papers_does_of_a_larger_one() -> None:
    """Noise averaged over 4 x 4 pixels of a 512 px image is a quarter of it at 128 px."""
    sigma = ((1 - noise_schedule(TEM.schedule).gamma) / noise_schedule(TEM.schedule).gamma).sqrt()
    wanted = float(sigma[TEM.start]) * TEM_TINY.px / TEM.px
    assert wanted <= float(sigma[TEM_TINY.start]) <= 1.35 * wanted


def test_the_stages_of_public_checkpoints_are_table_6s_but_for_what_is_named() -> None:
    assert num_parameters(IRM2_SR3.unet) == 155_334_339
    five = {"channel_multipliers": (1, 2, 4, 8, 16), "res_blocks": (1,) * 5, "attention_px": ()}
    assert replace(IRM2, unet=replace(IRM2.unet, **five)) == IRM2_SR3  # type: ignore[arg-type]
    assert replace(TEM_DIFFACE, unet=replace(TEM_DIFFACE.unet, first_step=1)) == TEM


def test_levels_halve_the_side() -> None:
    assert [IRM2.unet.level_px(level) for level in range(7)] == [512, 256, 128, 64, 32, 16, 8]
    assert IRM2_TINY.unet.level_px(0) == IRM2_TINY.px // 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"res_blocks": (1, 1)}, "2 entries in res_blocks; expected one a level, 3"),
        ({"image_px": 30}, "image_px=30; expected a multiple of 4 for 3 levels"),
        ({"norm_groups": 7}, "expected a multiple of norm_groups=7"),
        ({"first_step": 2}, r"first_step=2; expected 0\.\.1"),
        ({"first_step": 0, "time": "noise_level"}, "first_step=0 with time=noise_level; expected 1"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        replace(IRM1_TINY.unet, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        ((IRM2, {"start": 0}), r"irm2 has start=0; expected a step in 1\.\.2000"),
        ((TEM, {"start": 1001}), r"tem has start=1001; expected a step in 1\.\.1000"),
        (
            (TEM, {"fast": SamplerSpec("ddim", 101)}),
            r"tem has fast.num_evaluations=101; expected 1\.\.start=100",
        ),
        ((IRM1, {"unet": replace(IRM1.unet, in_channels=3)}), "irm1 has unet.in_channels=3; expected 6"),
        ((TEM, {"unet": replace(TEM.unet, in_channels=6)}), "tem has unet.in_channels=6; expected 3"),
        ((IRM2, {"unet": replace(IRM2.unet, out_channels=6)}), "irm2 has unet.out_channels=6; expected 3$"),
        (
            (IRM2, {"reverse_variance": "learned"}),
            "irm2 has reverse_variance=learned with unet.out_channels=3; expected 6",
        ),
        (
            (TEM, {"unet": replace(TEM.unet, out_channels=3), "reverse_variance": "learned"}),
            "tem has reverse_variance=learned",
        ),
        ((TEM, {"unet": replace(TEM.unet, out_channels=4)}), "tem has unet.out_channels=4; expected 3 or 6"),
    ],
)
def test_a_stage_that_cannot_run_is_refused(stage: tuple[StageSpec, dict[str, object]], match: str) -> None:
    whole, change = stage
    with pytest.raises(UsageError, match=match):
        replace(whole, **change)  # type: ignore[arg-type]
