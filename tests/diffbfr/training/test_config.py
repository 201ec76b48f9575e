"""Settings of a training are checked when they are made."""

from dataclasses import replace

import pytest

from diffbfr.errors import UsageError
from diffbfr.stages import IRM1, IRM2, TEM, TEM_TINY, StageSpec
from diffbfr.training.config import TrainingConfig, check_training

WHOLE = TrainingConfig(num_samples=8, global_batch=2, learning_rate=1e-4)


def test_the_last_step_may_reach_beyond_the_samples() -> None:
    assert TrainingConfig(num_samples=33, global_batch=8, learning_rate=1e-4).num_steps == 5
    assert TrainingConfig(num_samples=32, global_batch=8, learning_rate=1e-4).num_steps == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"global_batch": 0}, "global_batch=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; expected a positive number"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1; expected 0 or more"),
        (
            {"ema_half_life": 0.0},
            "ema_half_life=0.0; expected a number of samples, or none for the last weights",
        ),
        ({"t_max": 0}, "t_max=0; expected at least 1"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma=0.0; expected a positive number"),
        ({"patch_full_share": 1.0}, r"patch_full_share=1.0; expected a share in \[0, 1\)"),
        ({"ema_lengths": (0.05,), "average_samples": 8}, "expected two lengths between 0 and 0.289"),
        ({"ema_lengths": (0.05, 0.3), "average_samples": 8}, "expected two lengths between 0 and 0.289"),
        ({"ema_lengths": (0.05, 0.1)}, "without average_samples"),
    ],
)
def test_settings_that_train_nothing_are_refused(change: dict[str, object], match: str) -> None:
    whole: dict[str, object] = {"num_samples": 8, "global_batch": 2, "learning_rate": 1e-4}
    with pytest.raises(UsageError, match=match):
        TrainingConfig(**{**whole, **change})  # type: ignore[arg-type]


def test_every_option_that_the_paper_does_not_have_is_off() -> None:
    assert (WHOLE.min_snr_gamma, WHOLE.patch_px, WHOLE.ema_lengths, WHOLE.t_max) == (None, None, (), None)
    assert (WHOLE.warmup_samples, WHOLE.decay_samples, WHOLE.max_gradient_norm, WHOLE.weight_decay) == (
        0,
        0,
        None,
        0,
    )


def test_averages_are_counted() -> None:
    two = replace(WHOLE, ema_lengths=(0.05, 0.1), average_samples=8)
    assert (WHOLE.num_averages, replace(WHOLE, ema_half_life=None).num_averages, two.num_averages) == (
        1,
        0,
        3,
    )


@pytest.mark.parametrize(
    ("stage", "patch_px", "match"),
    [
        (IRM1, 64, "irm1 has patch_px=64; expected none"),
        (IRM2, 96, "irm2 has patch_px=96; expected a multiple of 64 .its 7 levels halve the side. below 512"),
        (IRM2, 512, "patch_px=512; expected a multiple of 64 .* below 512"),
        (TEM_TINY, 60, "tem has patch_px=60; expected a multiple of 8"),
        (TEM, 0, "patch_px=0"),
    ],
)
def test_patches_that_the_levels_cannot_take_are_refused(stage: StageSpec, patch_px: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        check_training(stage, replace(WHOLE, patch_px=patch_px))


def test_patches_that_fit_cost_their_share_of_the_area() -> None:
    config = replace(WHOLE, patch_px=128, patch_full_share=0.25)
    check_training(IRM2, config)
    assert config.area_share(512) == 0.25 + 0.75 / 16
    assert config.largest_px(512) == 512
    assert replace(config, patch_full_share=0.0).largest_px(512) == 128
    assert (WHOLE.area_share(512), WHOLE.largest_px(512)) == (1, 512)
