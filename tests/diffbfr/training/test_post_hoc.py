"""Averages of any length from the snapshots of a real training."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffbfr.errors import UsageError
from diffbfr.shards import ShardedDataset
from diffbfr.training.config import TrainingConfig
from diffbfr.training.loop import AVERAGES, Run, train
from diffbfr.training.post_hoc import reconstruct
from tests.diffbfr.tiny import TINY_STAGES

CONFIG = TrainingConfig(
    num_samples=400, global_batch=4, learning_rate=1e-2, checkpoint_samples=10**6, average_samples=50
)


@pytest.mark.slow
def test_a_length_chosen_afterwards_is_the_average_that_a_training_of_that_length_keeps(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    stage = TINY_STAGES["irm1"]
    train(Run(stage, replace(CONFIG, ema_lengths=(0.05, 0.1)), tiny_dataset, tmp_path / "basis"))
    train(Run(stage, replace(CONFIG, ema_lengths=(0.08, 0.16)), tiny_dataset, tmp_path / "tracked"))
    last = tmp_path / "tracked" / AVERAGES / "000000400"
    for length in (0.08, 0.16):
        together, chosen = reconstruct(tmp_path / "basis" / AVERAGES, "irm1", length)
        tracked = load_file(last / f"power-{length:g}" / "irm1.safetensors")
        nearest = load_file(tmp_path / "basis" / AVERAGES / "000000400" / "power-0.1" / "irm1.safetensors")
        off = sum(float((together[key] - tracked[key]).double().square().sum()) for key in tracked) ** 0.5
        without = sum(float((nearest[key] - tracked[key]).double().square().sum()) for key in tracked) ** 0.5
        assert off < 0.1 * without
        assert chosen.error < 0.1


def test_a_training_that_kept_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000000100").mkdir()
    with pytest.raises(
        UsageError, match=r"found 0 power-function averages of tem .* --set tem.training.ema_lengths=0.05,0.1"
    ):
        reconstruct(tmp_path, "tem", 0.07)
