"""The steps at which a distilled stage is trained: those of the grids on which it is sampled."""

import torch

from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import PAPER_FIDELITY, StageSpec
from diffbfr.step_grid import step_grid

_NOMINAL_SHARE = 0.5
"""Fraction of the samples whose grid begins at the stage's own start; the others begin at any fidelity's."""


def draw_step(
    stage: StageSpec, schedule: NoiseSchedule, t_max: int, generator: torch.Generator
) -> tuple[int, int]:
    """Draw a step of a student's grid and the step that follows it, 0 after the last.

    Half of the grids begin at the stage's own start, the others at that of a uniform fidelity, so that a
    student serves any (`StageSpec.start_at`); none begins above `t_max`, where its teacher was not trained.
    """
    fidelity = PAPER_FIDELITY
    if float(torch.rand((), generator=generator)) >= _NOMINAL_SHARE:
        fidelity = float(torch.rand((), generator=generator))
    full = stage.start == stage.schedule.num_steps
    start = stage.start if full else max(min(stage.start_at(fidelity), t_max), stage.fast.num_evaluations)
    grid = [*step_grid(schedule, start, stage.fast), 0]
    index = int(torch.randint(len(grid) - 1, (), generator=generator))
    return grid[index], grid[index + 1]
