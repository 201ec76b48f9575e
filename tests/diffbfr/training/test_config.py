"""Settings of a training are checked when they are made."""

import pytest

from diffbfr.errors import UsageError
from diffbfr.training.config import TrainingConfig


def test_the_last_step_may_reach_beyond_the_samples() -> None:
    assert TrainingConfig(num_samples=33, global_batch=8, learning_rate=1e-4).num_steps == 5
    assert TrainingConfig(num_samples=32, global_batch=8, learning_rate=1e-4).num_steps == 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"global_batch": 0}, "global_batch=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; expected a positive number"),
        ({"t_max": 0}, "t_max=0; expected at least 1"),
    ],
)
def test_settings_that_train_nothing_are_refused(change: dict[str, float], match: str) -> None:
    whole: dict[str, float] = {"num_samples": 8, "global_batch": 2, "learning_rate": 1e-4}
    with pytest.raises(UsageError, match=match):
        TrainingConfig(**{**whole, **change})  # type: ignore[arg-type]
