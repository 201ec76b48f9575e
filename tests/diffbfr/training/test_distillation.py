"""A student's target is exactly where its teacher's DDIM steps lead; checked where the denoiser is known in closed form."""

import math
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffbfr.cascade import sample
from diffbfr.diffusion import ddim_origin, ddim_step
from diffbfr.errors import UsageError
from diffbfr.models.denoiser import Denoiser
from diffbfr.samplers import solve
from diffbfr.schedule import noise_schedule
from diffbfr.shards import ShardedDataset
from diffbfr.stages import SamplerSpec, Solver, StageName, StageSpec
from diffbfr.step_grid import step_grid
from diffbfr.training.batches import PositionLoader
from diffbfr.training.config import TrainingConfig, check_training
from diffbfr.training.distillation import distillation_loss, distilled_target, follow, teacher_path
from diffbfr.training.loop import Run, train
from diffbfr.training.student_grid import draw_step
from tests.diffbfr.tiny import COLUMN, TINY_STAGES, wake

STD = 0.4
CONFIG = TrainingConfig(
    num_samples=16, global_batch=4, learning_rate=1e-3, teacher_steps=2, checkpoint_samples=8, seed=3
)


class GaussianTeacher(Denoiser):
    """The exact denoiser of images whose pixels are drawn from N(0, STD^2)."""

    def __init__(self) -> None:
        super().__init__(TINY_STAGES["irm2"])

    def variance(self, t: int) -> float:
        gamma = float(self.schedule.gamma[t])
        return gamma * STD**2 + 1 - gamma

    def epsilon(self, y_t: Tensor, t: Tensor, condition: Tensor | None, *, together: bool = False) -> Tensor:
        share = [math.sqrt(1 - float(self.schedule.gamma[i])) / self.variance(i) for i in t.tolist()]
        return torch.tensor(share, dtype=y_t.dtype).view(-1, 1, 1, 1) * y_t

    def step(self, t: int, after: int) -> float:
        """What one DDIM step multiplies an image with, by hand."""
        gamma, later = float(self.schedule.gamma[t]), float(self.schedule.gamma[after])
        y_0 = math.sqrt(gamma) * STD**2 / self.variance(t)
        kept = math.sqrt((1 - later) / (1 - gamma))
        return math.sqrt(later) * y_0 + kept * (1 - math.sqrt(gamma) * y_0)


TEACHER = GaussianTeacher()
IMAGES = 0.2 * torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def student(solver: Solver) -> StageSpec:
    stage = TINY_STAGES["irm2"]
    unet = replace(stage.unet, time="step")
    return replace(stage, unet=unet, fast=SamplerSpec(solver, 2, 1.0), predicts="velocity", distilled=True)


def target(solver: Solver, t: int, after: int, steps: int) -> Tensor:
    ends = (torch.tensor([t, t]), torch.tensor([after, after]))
    return distilled_target(TEACHER, IMAGES, *ends, None, student(solver), steps)


def test_one_step_of_the_student_is_two_of_the_teacher() -> None:
    t, middle, after = teacher_path(TEACHER.schedule, 900, 400, 2)
    assert (t, after) == (900, 400)
    factor = TEACHER.step(t, middle) * TEACHER.step(middle, after)
    reached = ddim_step(
        IMAGES,
        target("ddim", t, after, 2),
        torch.tensor([t, t]),
        torch.tensor([after, after]),
        TEACHER.schedule,
    )
    torch.testing.assert_close(reached, factor * IMAGES, rtol=1e-10, atol=0)
    assert factor != pytest.approx(TEACHER.step(t, after), rel=1e-3)


def test_many_steps_follow_the_flow_that_keeps_the_distribution() -> None:
    reached = follow(TEACHER, IMAGES, [list(range(900, 399, -1))] * 2, None)
    flow = math.sqrt(TEACHER.variance(400) / TEACHER.variance(900))
    torch.testing.assert_close(reached, flow * IMAGES, rtol=1e-3, atol=0)


def test_where_the_solver_draws_anew_the_target_is_the_end_of_the_trajectory() -> None:
    path = teacher_path(TEACHER.schedule, 900, 0, 3)
    factor = math.prod(TEACHER.step(t, after) for t, after in pairwise(path))
    assert path[0] == 900
    assert path[-1] == 0
    torch.testing.assert_close(target("ancestral", 900, 400, 3), factor * IMAGES, rtol=1e-10, atol=0)
    # the last evaluation of either student gives the image itself
    torch.testing.assert_close(target("ddim", 900, 0, 3), target("ancestral", 900, 400, 3))


def test_the_trajectory_is_the_one_that_the_sampler_takes() -> None:
    spec = SamplerSpec("ddim", 5)
    grids = [step_grid(TEACHER.schedule, 900, spec), step_grid(TEACHER.schedule, 70, spec)]

    def epsilon(y: Tensor, t: Tensor) -> Tensor:
        return TEACHER.epsilon(y, t, None)

    sampled = solve(epsilon, IMAGES, grids, TEACHER.schedule, spec, lambda steps: IMAGES)
    followed = follow(TEACHER, IMAGES, [[*grid, 0] for grid in grids], None)
    torch.testing.assert_close(followed, sampled, rtol=1e-10, atol=1e-12)


def test_a_step_and_its_origin_are_inverse_and_only_lead_down() -> None:
    t, after = torch.tensor([2000, 5]), torch.tensor([1700, 0])
    y_s = torch.flip(IMAGES, (0,))
    y_0 = ddim_origin(IMAGES, y_s, t, after, TEACHER.schedule)
    torch.testing.assert_close(ddim_step(IMAGES, y_0, t, after, TEACHER.schedule), y_s)
    torch.testing.assert_close(y_0[1], y_s[1])
    with pytest.raises(UsageError, match="expected each to lead to a lower one"):
        ddim_step(IMAGES, y_0, t, t, TEACHER.schedule)


@pytest.mark.parametrize(("t", "after", "steps"), [(900, 898, 4), (2000, 1, 100), (3, 0, 8), (600, 599, 1)])
def test_a_path_falls_from_start_to_end(t: int, after: int, steps: int) -> None:
    path = teacher_path(TEACHER.schedule, t, after, steps)
    assert (path[0], path[-1]) == (t, after)
    assert all(later < earlier for earlier, later in pairwise(path))
    assert len(path) <= steps + 1


def distilled(name: StageName, solver: Solver = "ddim") -> StageSpec:
    stage = TINY_STAGES[name]
    unet = stage.unet if name == "tem" else replace(stage.unet, time="step")
    fast = SamplerSpec(solver, 2, 2.0 if name == "tem" else 1.0)
    return replace(stage, unet=unet, fast=fast, predicts="velocity", prior_std=0.3, distilled=True)


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
@pytest.mark.parametrize("name", ["irm1", "irm2", "tem"])
def test_a_student_that_takes_as_many_steps_as_its_teacher_has_nothing_to_learn(
    tiny_dataset: ShardedDataset, name: StageName, solver: Solver
) -> None:
    stage = distilled(name, solver)
    column = COLUMN if name == "irm2" else None
    with closing(PositionLoader(tiny_dataset, stage, CONFIG, column).batches()) as batches:
        batch = next(batches)
    assert batch.after is not None
    assert bool((batch.after < batch.t).all())
    denoiser, teacher = (wake(Denoiser(spec), 1).eval() for spec in (stage, replace(stage, distilled=False)))
    one = replace(batch, after=torch.zeros_like(batch.after)) if solver == "ancestral" else batch
    # the networks are random, so that their predictions leave [-1, 1] unless they are small
    for net in (denoiser.net, teacher.net):
        for p in net.parameters():
            p.data *= 0.3
    assert distillation_loss(denoiser, denoiser, teacher, one, 1).item() < 2e-4
    assert distillation_loss(denoiser, denoiser, teacher, one, 6).item() > 1e-3


def test_steps_are_those_of_grids_that_begin_at_starts_of_any_fidelity() -> None:
    stage = student("ddim")
    schedule, generator = noise_schedule(stage.schedule), torch.Generator().manual_seed(0)
    drawn = [draw_step(stage, schedule, 1200, generator) for _ in range(400)]
    own = step_grid(schedule, stage.start, stage.fast)
    firsts = [t for t, after in drawn if after]
    assert 0.4 < firsts.count(own[0]) / len(firsts) < 0.65
    assert min(firsts) < 0.6 * stage.start
    assert max(firsts) == 1200
    low = replace(distilled("irm1"), start=2000)
    assert {t for t, after in (draw_step(low, schedule, 2000, generator) for _ in range(50)) if after} == {
        2000
    }


def test_a_student_resumes_to_the_same_weights_and_has_no_other_mode(
    tiny_dataset: ShardedDataset, tmp_path: Path
) -> None:
    stage = distilled("tem")
    teacher = wake(Denoiser(replace(stage, distilled=False))).eval().requires_grad_(False)

    def run(folder: Path) -> dict[str, Tensor]:
        train(Run(stage, CONFIG, tiny_dataset, folder, initial=teacher, initial_digest="teacher"))
        from safetensors.torch import load_file

        return load_file(folder / "tem.safetensors")

    whole, cut = run(tmp_path / "whole"), tmp_path / "cut"

    class KilledError(Exception):
        pass

    def kill(step: int) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(
            Run(stage, CONFIG, tiny_dataset, cut, initial=teacher, initial_digest="teacher"), heartbeat=kill
        )
    assert all(torch.equal(whole[name], value) for name, value in run(cut).items())
    assert any(not torch.equal(whole[name], value) for name, value in teacher.net.state_dict().items())
    image = torch.zeros(1, 3, stage.px, stage.px)
    assert (
        sample(Denoiser(stage).eval(), ["a"], "fast", start_image=image, condition=None).shape == image.shape
    )
    with pytest.raises(UsageError, match="tem was distilled to 2 evaluations; expected mode fast"):
        sample(Denoiser(stage).eval(), ["a"], "faithful", start_image=image, condition=None)


def test_what_cannot_be_distilled_is_refused_by_name(tiny_dataset: ShardedDataset, tmp_path: Path) -> None:
    stage = distilled("irm1")
    with pytest.raises(
        UsageError, match="irm1 is distilled and starts from random weights; expected a teacher"
    ):
        train(Run(stage, CONFIG, tiny_dataset, tmp_path))
    for spec, config, words in (
        (stage, replace(CONFIG, teacher_steps=None), "expected both for a student and neither otherwise"),
        (replace(stage, distilled=False), CONFIG, "expected both for a student and neither otherwise"),
        (replace(stage, predicts="noise"), CONFIG, "irm1 predicts the noise and starts from noise alone"),
        (stage, replace(CONFIG, min_snr_gamma=5.0), "unset irm1.training.min_snr_gamma"),
    ):
        with pytest.raises(UsageError, match=words):
            check_training(spec, config)
    with pytest.raises(
        UsageError, match=r"irm1 is distilled and has fast\.solver=dpmpp_2m; expected ddim or"
    ):
        replace(stage, fast=SamplerSpec("dpmpp_2m", 4))
    with pytest.raises(UsageError, match="teacher_steps"):
        replace(CONFIG, teacher_steps=0)
