"""Averages of any length from the power-function averages of a training (Karras et al. 2024, section 3.2)."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffbfr.ema import Combination, Snapshot, combination
from diffbfr.errors import UsageError
from diffbfr.stages import StageName


def reconstruct(averages: Path, name: StageName, length: float) -> tuple[dict[str, Tensor], Combination]:
    """Weights of the average of `length` at the last snapshot, in float32, and how they were combined.

    `averages` is the folder that `TrainingConfig.average_samples` fills. Snapshots are read one at a time and
    summed in float64. UsageError if there are fewer than two.
    """
    found = {
        Snapshot(int(path.parent.parent.name), float(path.parent.name.removeprefix("power-"))): path
        for path in _files(averages, name)
    }
    if len(found) < 2:
        raise UsageError(
            f"found {len(found)} power-function averages of {name} in {averages}; expected at least two; "
            f"train with --set {name}.training.ema_lengths=0.05,0.1 and {name}.training.average_samples"
        )
    chosen = combination(list(found), length, max(snapshot.samples for snapshot in found))
    total: dict[str, Tensor] = {}
    for coefficient, path in zip(chosen.coefficients, found.values(), strict=True):
        for key, value in load_file(path).items():
            total[key] = (
                total.get(key, torch.zeros((), dtype=torch.float64)) + float(coefficient) * value.double()
            )
    return {key: value.float() for key, value in total.items()}, chosen


def _files(averages: Path, name: StageName) -> list[Path]:
    return sorted(averages.glob(f"*/power-*/{name}.safetensors"))
