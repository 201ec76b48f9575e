"""Distillation: a student of few evaluations learns where its teacher's deterministic trajectory leads.

The student has the teacher's network and starts from its weights. It is evaluated at the steps of its own
grid alone (`StageSpec.start`, `StageSpec.fast`). At a step t of the grid the teacher starts from the same y_t
and takes several DDIM steps; the student learns the y_0 with which one step of its own solver does the same:

- `ddim`: the teacher goes to the student's next step s, and the target is the y_0 with which one DDIM step
  leads there (Salimans & Ho 2022, Algorithm 2, with any number of the teacher's steps instead of two).
- `ancestral`: the solver draws the noise of the next step anew, so the teacher goes to its end, and the
  target is that image (Luhman & Luhman 2021; a consistency model's value at t, by simulation).

At the last step of a grid both are the same. Trajectories begin at y_t ~ q(y_t | y_0) of the data (Eq. 2).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffbfr.diffusion import ddim_origin, ddim_step, noise_loss, predict_y_0, q_sample
from diffbfr.models.denoiser import Denoiser
from diffbfr.schedule import NoiseSchedule
from diffbfr.stages import SamplerSpec, StageSpec
from diffbfr.step_grid import step_grid
from diffbfr.training.batches import Batch


def distillation_loss(
    student: Denoiser, net: nn.Module, teacher: Denoiser, batch: Batch, teacher_steps: int
) -> Float[Tensor, ""]:
    """Distance of the student's output from its target, a mean over the batch.

    The output is compared as in a training on data: as noise or as velocity, by the loss of the stage, within
    `valid`. `batch.t` are steps of the student's grid and `batch.after` those that follow.
    """
    assert batch.after is not None
    schedule, spec = student.schedule, student.spec
    y_t = q_sample(batch.y_0, batch.t, schedule, batch.noise)
    y_0 = distilled_target(teacher, y_t, batch.t, batch.after, batch.condition, spec, teacher_steps)
    level = schedule.gamma.sqrt()[batch.t].to(y_t.device).view(-1, 1, 1, 1)
    noise = (y_t - level.to(y_t.dtype) * y_0) / (1 - level.square()).sqrt().to(y_t.dtype)
    output = net(y_t, student.time_of(batch.t).to(y_t.device), batch.condition, batch.dropout_seeds)
    target = student.target(y_0, noise, level, batch.condition)
    return noise_loss(output[:, :3], target, spec.loss, batch.valid).mean()


@torch.no_grad()
def distilled_target(
    teacher: Denoiser,
    y_t: Float[Tensor, "b 3 h w"],
    t: Int[Tensor, " b"],
    after: Int[Tensor, " b"],
    condition: Float[Tensor, "b conditions h w"] | None,
    student: StageSpec,
    teacher_steps: int,
) -> Float[Tensor, "b 3 h w"]:
    """The y_0 that the student should predict at step t.

    `after` is the next step of the student's grid, 0 after the last.
    """
    ends = after if student.fast.solver == "ddim" else torch.zeros_like(after)
    paths = [
        teacher_path(teacher.schedule, *steps, teacher_steps)
        for steps in zip(t.tolist(), ends.tolist(), strict=True)
    ]
    y_s = follow(teacher, y_t, paths, condition)
    return ddim_origin(y_t, y_s, t, ends, teacher.schedule)


def teacher_path(schedule: NoiseSchedule, t: int, after: int, steps: int) -> list[int]:
    """The steps of the teacher from t down to `after`, evenly spaced in log-SNR; strictly falling.

    To the clean image (`after` = 0) its evaluations end as those of mode `fast` do. Where fewer than `steps`
    steps lie between, it takes each of them.
    """
    if after == 0:
        return [*step_grid(schedule, t, SamplerSpec("ddim", min(steps, t))), 0]
    end = float(schedule.half_log_snr[after])
    path = step_grid(schedule, t, SamplerSpec("ddim", min(steps, t - after) + 1, end_half_log_snr=end))
    path[-1] = after
    for i in reversed(range(1, len(path) - 1)):
        path[i] = max(path[i], path[i + 1] + 1)
    return path


def follow(
    teacher: Denoiser,
    y: Float[Tensor, "b 3 h w"],
    paths: Sequence[Sequence[int]],
    condition: Float[Tensor, "b conditions h w"] | None,
) -> Float[Tensor, "b 3 h w"]:
    """Follow each image's path by DDIM, with every prediction of y_0 in [-1, 1] as in sampling."""
    longest = max(map(len, paths))
    rows = torch.tensor([[*path, *[path[-1]] * (longest - len(path))] for path in paths]).T
    for t, after in pairwise(rows):
        moving = t > after
        some, known = y[moving], None if condition is None else condition[moving]
        epsilon = teacher.epsilon(some, t[moving], known, together=True)
        y_0 = predict_y_0(some, t[moving], teacher.schedule, epsilon).clamp(-1, 1)
        y = y.clone()
        y[moving] = ddim_step(some, y_0, t[moving], after[moving], teacher.schedule)
    return y
