"""The recipe that distils a cascade: its stages with few evaluations, trained on where its samplers lead."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.stages import STAGE_NAMES, SamplerSpec, StageName, StageSpec
from diffbfr.training.config import TrainingConfig
from pipelines.recipes.recipe import Recipe, StageConfig

EVALUATIONS: Final[Mapping[StageName, int]] = {"irm1": 4, "irm2": 2, "tem": 2}
TEACHER_STEPS: Final = 4
SHARE_OF_SAMPLES: Final = 0.1
"""Samples of a student relative to those of the recipe, with which its teacher was trained."""
SHARE_OF_RATE: Final = 0.3
"""Learning rate relative to the recipe's: a student begins near its end."""
IRM1_END: Final = 1.0
"""log(signal / noise) of the last evaluation of IRM-1, which begins at about -5."""
ENDS_ABOVE_LOWEST: Final[Mapping[StageName, float]] = {"irm2": 0.33, "tem": 0.25}
"""How far it is above that of the lowest start of a truncated stage, the one of fidelity 1."""


def distilled(recipe: Recipe, teacher: Mapping[StageName, StageSpec], init: str) -> Recipe:
    """The recipe with the teacher's stages as students, which start from the weights that `init` names.

    Data, evaluation, cluster and tracking stay, with the sizes of the teacher. UsageError if the teacher is
    distilled itself.
    """
    done = next((name for name in STAGE_NAMES if teacher[name].distilled), None)
    if done is not None:
        raise UsageError(
            f"{done} of {init} is distilled already, to {teacher[done].fast.num_evaluations} evaluations; "
            "expected a cascade that was trained on data; name its teacher, see `diffbfr models lineage`"
        )
    irm1, irm2, tem = (_student(recipe.stage(name).training, teacher[name]) for name in STAGE_NAMES)
    data = replace(recipe.data, lq_px=teacher["irm1"].px, hq_px=teacher["tem"].px)
    name = f"{recipe.name}-distilled"
    return replace(recipe, name=name, init=init, data=data, irm1=irm1, irm2=irm2, tem=tem)


def _student(training: TrainingConfig, teacher: StageSpec) -> StageConfig:
    samples = max(training.global_batch, round(training.num_samples * SHARE_OF_SAMPLES))
    condition = training.condition
    if teacher.name == "irm2" and (condition == "both") != teacher.sees_input:
        condition = "both" if teacher.sees_input else "sampled"
    return StageConfig(
        student_of(teacher),
        replace(
            training,
            num_samples=samples,
            learning_rate=training.learning_rate * SHARE_OF_RATE,
            warmup_samples=min(training.warmup_samples, samples // 8),
            decay_samples=samples // 2,
            ema_half_life=None if training.ema_half_life is None else samples / 16,
            checkpoint_samples=min(training.checkpoint_samples, max(training.global_batch, samples // 4)),
            average_samples=None,
            ema_lengths=(),
            min_snr_gamma=None,
            condition=condition,
            teacher_steps=TEACHER_STEPS,
        ),
    )


def with_few_evaluations(stage: StageSpec) -> StageSpec:
    """The stage sampled with the evaluations of its student, without training; a student as it is."""
    return stage if stage.distilled else replace(stage, fast=student_of(stage).fast)


def student_of(teacher: StageSpec) -> StageSpec:
    """The teacher's stage with 4 (IRM-1) or 2 (IRM-2, TEM) evaluations.

    IRM-1 starts from noise alone and follows a deterministic path. The truncated stages draw anew between
    their two evaluations, which forgets the errors of their starts (`diffbfr/README.md`).
    """
    from diffbfr.schedule import noise_schedule

    if teacher.name == "irm1":
        fast = SamplerSpec("ddim", EVALUATIONS["irm1"], IRM1_END)
    else:
        lowest = float(noise_schedule(teacher.schedule).half_log_snr[teacher.start_at(1.0)])
        end = round(lowest + ENDS_ABOVE_LOWEST[teacher.name], 2)
        fast = SamplerSpec("ancestral", EVALUATIONS[teacher.name], end)
    return replace(teacher, fast=fast, distilled=True)
