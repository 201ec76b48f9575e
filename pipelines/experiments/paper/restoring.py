"""Restore the faces of a hold-out in every arm, each output once, as PNG files that any evaluator reads.

FOLDER/reference/KEY.png    the ground truths
FOLDER/SEED/ARM/KEY.png     the outputs at full size; SEED/lq/ has the enlarged inputs
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import Tensor

from diffbfr.cascade import Cascade, sample
from diffbfr.checkpoint import load_stage
from diffbfr.cost.threads import single_thread
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.models.denoiser import Denoiser, upsample
from diffbfr.stages import Mode
from pipelines import storage
from pipelines.dataset.manifest import open_dataset
from pipelines.experiments.paper.arms import Arm, scaled_start
from pipelines.experiments.paper.trainings import Trained

if TYPE_CHECKING:
    from diffbfr.shards import ShardedDataset

KEYS_PER_TASK: Final = 8
REFERENCE: Final = "reference"


@dataclass(frozen=True)
class Sampling:
    """How the stages are sampled; `evaluations` of IRM-2 and of IRM-s from any start, in mode `fast`.

    The stochastic solver with 20 of them is good from a shallow and from a deep start (`docs/results.md`).
    `end` is log(signal / noise) at the last evaluation of both and of IRM-1, which then takes as many; None
    is the stages' own. Networks of short trainings leave noise when they are sampled to the own end.
    """

    mode: Mode = "fast"
    evaluations: int = 20
    end: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise UsageError(f"found {self.evaluations} evaluations; expected at least 1; give more")
        if self.end is not None and self.mode == "faithful":
            raise UsageError(
                "found an end of the evaluations in mode faithful, which has none; leave --end out"
            )


@dataclass(frozen=True)
class RestoreTask:
    """Some faces of a dataset, to be restored in every arm with the weights of one seed."""

    dataset: str
    keys: tuple[str, ...]
    trained: Trained
    arms: tuple[Arm, ...]
    sampling: Sampling
    folder: Path

    def place(self, arm: Arm, key: str) -> Path:
        """The file of one output."""
        return self.folder / str(self.trained.seed) / arm.name / f"{key}.png"


def plan_restoring(template: RestoreTask) -> list[RestoreTask]:
    """Tasks of a few keys, without those whose files are all there."""
    groups = [template.keys[i : i + KEYS_PER_TASK] for i in range(0, len(template.keys), KEYS_PER_TASK)]
    tasks = [replace(template, keys=keys) for keys in groups]
    return [task for task in tasks if any(map(partial(_missing, task), task.arms))]


def write_references(dataset: str, keys: Sequence[str], folder: Path) -> None:
    """Write the ground truths."""
    opened = open_dataset(dataset)
    for key in keys:
        place = folder / REFERENCE / f"{key}.png"
        if not place.is_file():
            storage.write_atomic(str(place), encode_png(opened.hq(key, 0)))


def make_restorer(first: RestoreTask) -> Callable[[RestoreTask], int]:
    """Load dataset and networks once; return the function that writes the outputs of a task's keys."""
    dataset = open_dataset(first.dataset)
    cascade = Cascade.load(first.trained.cascade)
    if first.sampling.end is not None:
        cascade.irm1 = started(cascade.irm1, None, first.sampling)
    one_stage = load_stage(first.trained.one_stage, "irm1").ready("cpu")

    def run(task: RestoreTask) -> int:
        with single_thread():
            faces = _Faces(task, dataset, cascade, one_stage)
            for arm in task.arms:
                if _missing(task, arm):
                    _write(task, arm, faces.restore(arm))
        return len(task.keys)

    return run


class _Faces:
    """The faces of one task; outputs that several arms share are made once."""

    def __init__(
        self, task: RestoreTask, dataset: "ShardedDataset", cascade: Cascade, one_stage: Denoiser
    ) -> None:
        self._sampling = task.sampling
        self._cascade = cascade
        self._one_stage = one_stage
        self._lqs = [dataset.lq(key, 0) for key in task.keys]
        self._noise = [
            noise_key(hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest(), seed=task.trained.seed)
            for key in task.keys
        ]
        self._low: Tensor | None = None
        self._high: dict[int | None, Tensor] = {}

    def restore(self, arm: Arm) -> list[Pixels]:
        """The outputs of an arm."""
        if arm.is_input:
            return [lq_to_model(lq, self._cascade.hq_px) for lq in self._lqs]
        if arm.one_stage:
            stage = started(self._one_stage, None, self._sampling)
            condition = self._inputs(stage.spec.px)
            made = sample(stage, self._noise, self._sampling.mode, start_image=None, condition=condition)
            return list(to_pixels(made))
        high = self._second_stage(arm.n1)
        if arm.n2 is None:
            return list(to_pixels(high))
        stage = started(
            self._cascade.tem, arm.n2, Sampling(evaluations=self._cascade.tem.spec.fast.num_evaluations)
        )
        made = sample(stage, self._noise, self._sampling.mode, start_image=high, condition=None)
        return list(to_pixels(made))

    def _inputs(self, px: int) -> Tensor:
        return to_tensor([lq_to_model(lq, px) for lq in self._lqs])

    def _second_stage(self, n1: int | None) -> Tensor:
        if n1 not in self._high:
            mode, second = self._sampling.mode, self._cascade.irm2.spec
            if self._low is None:
                self._low = self._cascade.identity(self._inputs(self._cascade.lq_px), self._noise, mode)
            enlarged = upsample(self._low, second.px, second.resize_kernel, clamp=second.resize_clamp)
            stage = started(self._cascade.irm2, n1, self._sampling)
            start_image = None if n1 is None else enlarged
            self._high[n1] = sample(stage, self._noise, mode, start_image=start_image, condition=enlarged)
        return self._high[n1]


def started(stage: Denoiser, start: int | None, sampling: Sampling) -> Denoiser:
    """The stage, sampled from the paper's `start` at its size; None is pure noise."""
    spec = stage.spec
    here = spec.schedule.num_steps if start is None else scaled_start(spec.schedule, start, spec.px)
    end = spec.fast.end_half_log_snr if sampling.end is None else sampling.end
    solver = replace(
        spec.fast,
        solver="sde_dpmpp_2m",
        num_evaluations=min(sampling.evaluations, here),
        end_half_log_snr=end,
    )
    other = copy.copy(stage)
    other.spec = replace(spec, start=here, fast=solver)
    return other


def _missing(task: RestoreTask, arm: Arm) -> bool:
    return not all(task.place(arm, key).is_file() for key in task.keys)


def _write(task: RestoreTask, arm: Arm, outputs: Sequence[Pixels]) -> None:
    for key, pixels in zip(task.keys, outputs, strict=True):
        storage.write_atomic(str(task.place(arm, key)), encode_png(pixels))
