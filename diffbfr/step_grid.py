"""The steps that a few-step solver visits.

Apart from the solvers, because a distilled stage is trained at these steps, and an edit of a solver must not
train a stage again.
"""

from collections.abc import Sequence

import torch

from diffbfr.errors import UsageError
from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import SamplerSpec


def step_grid(schedule: NoiseSchedule, start: int, spec: SamplerSpec) -> list[int]:
    """Steps from `start` down to `end_half_log_snr`, evenly spaced in log-SNR or in t; strictly falling.

    The spacing is `SamplerSpec.grid`. Where two values round to one step the next lower step is taken; as
    many evaluations as steps visit every step.
    """
    check_starts([start], schedule)
    if not 1 <= spec.num_evaluations <= start:
        raise UsageError(f"{spec.num_evaluations} evaluations from start={start}; expected 1..{start}")
    half_log_snr = schedule.half_log_snr[1:]
    first = float(half_log_snr[start - 1])
    end = max(spec.end_half_log_snr, first)
    if spec.grid == "t":
        last = int((half_log_snr - end).abs().argmin()) + 1
        grid = [
            round(t) for t in torch.linspace(start, last, spec.num_evaluations, dtype=torch.float64).tolist()
        ]
    else:
        wanted = torch.linspace(first, end, spec.num_evaluations, dtype=torch.float64)
        grid = [int((half_log_snr - value).abs().argmin()) + 1 for value in wanted]
    grid[0] = start
    for i in range(1, len(grid)):
        grid[i] = min(grid[i], grid[i - 1] - 1)
    return [max(t, len(grid) - i) for i, t in enumerate(grid)]


def check_starts(starts: Sequence[int], schedule: NoiseSchedule) -> None:
    """UsageError for a start that is no step of the schedule."""
    for start in starts:
        if not 1 <= start <= schedule.num_steps:
            raise UsageError(f"start={start}; expected a step in 1..{schedule.num_steps}")
