"""Evaluate a cascade on held-out faces: every output of Algorithm 1 is compared with the ground truth.

Subjects are the low-quality input (bilinear to hq_px, as everywhere), IRM-1 (bicubic to hq_px), IRM-2 and
TEM. The noise of a face is keyed by its input file and the seed, so a score belongs to the image that
`restore` makes of that file, in any batch and on any worker.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diffbfr.errors import UsageError, one_line
from diffbfr.images import ImageRefused, Pixels, encode_png, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.info import MetricInfo
from diffbfr.stages import Mode
from pipelines.evaluation.types import EvaluateReport, EvaluateTask, Panel, Row, Subject
from pipelines.execution.staging import stage_file, staged_file
from pipelines.sources.sandboxed_images import decode_ours_sandboxed
from pipelines.steps.definition import StepDef, driver_only, without

if TYPE_CHECKING:
    from torch import Tensor

    from diffbfr.cascade import Cascade
    from diffbfr.shards import ShardedDataset
    from pipelines.cluster import Cluster
    from pipelines.evaluation.scores import Evaluation
    from pipelines.execution.dag import StepOutput
    from pipelines.execution.model_ref import ModelRef
    from pipelines.recipes.recipe import EvaluateConfig, Recipe
    from pipelines.steps.context import RunContext

SQUEEZENET_VARIABLE: Final = "DIFFBFR_SQUEEZENET"
IDENTITY_VARIABLE: Final = "DIFFBFR_IDENTITY"


def plan_evaluation(
    template: EvaluateTask, num_panels: int = 4, keys_per_task: int = 32
) -> list[EvaluateTask]:
    """Split a task over all keys into tasks for the workers, with panels of keys spread over the hold-out."""
    if not template.keys:
        raise UsageError(
            f"no held-out faces in {template.dataset}; expected at least one; shard with test_fraction above "
            "0"
        )
    count = min(num_panels, len(template.keys))
    # the choice depends on the keys alone, so that two evaluations show the same faces
    pinned = {template.keys[i * len(template.keys) // count] for i in range(count)}
    tasks = []
    for index, chunk in enumerate(_chunks(template.keys, keys_per_task)):
        panels = tuple(key for key in chunk if key in pinned)
        tasks.append(replace(template, index=index, keys=chunk, panels=panels))
    return tasks


def evaluate(task: EvaluateTask) -> EvaluateReport:
    """Restore and measure the faces of one task; equal tasks give equal rows."""
    return make_evaluator(task)(task)


def make_evaluator(first: EvaluateTask) -> Callable[[EvaluateTask], EvaluateReport]:
    """Load networks and manifest once; return the function that runs this task and those with other keys."""
    from pipelines.dataset.manifest import open_dataset

    dataset = open_dataset(first.dataset, decode_ours_sandboxed)
    lq_px, hq_px = dataset.info.lq_px, dataset.info.hq_px
    # the input of a cascade whose IRM-2 sees it has the size of the output
    if (first.cascade.lq_px, first.cascade.hq_px) not in ((lq_px, hq_px), (hq_px, hq_px)):
        raise UsageError(
            f"the dataset holds {dataset.info.lq_px} -> {dataset.info.hq_px} px, the cascade in "
            f"{first.cascade.folder} restores {first.cascade.lq_px} -> {first.cascade.hq_px} px; evaluate it "
            "on a dataset of its own sizes"
        )
    meters = _meters(first.squeezenet, first.identity)
    model = first.cascade.load()

    def run(task: EvaluateTask) -> EvaluateReport:
        if replace(task, index=first.index, keys=first.keys, panels=first.panels) != first:
            raise UsageError(
                f"task {task.index} is for {task.cascade.folder} and {task.dataset}, this worker holds "
                f"{first.cascade.folder} and {first.dataset}; expected one cascade and one dataset a worker; "
                "make another worker"
            )
        try:
            return _measure(task, dataset, model, meters)
        except ImageRefused as error:
            raise UsageError(
                f"{task.dataset} holds an image that cannot be decoded ({one_line(error)}); expected those "
                "of the shard step; find it with `diffbfr data verify --level 3` and make its shard again"
            ) from error

    return run


def squeezenet_weights(configured: str | None) -> str | None:
    """Path of SqueezeNet's weights: the configured one, else `DIFFBFR_SQUEEZENET`, else None.

    Without weights the metric is left out.
    """
    return _weights_path(configured, SQUEEZENET_VARIABLE, "evaluate.squeezenet", "SqueezeNet 1.0")


def identity_weights(configured: str | None) -> str | None:
    """Path of MobileFaceNet's weights: the configured one, else `DIFFBFR_IDENTITY`, else None.

    Without weights the metric is left out.
    """
    return _weights_path(configured, IDENTITY_VARIABLE, "evaluate.identity", "MobileFaceNet")


def _weights_path(configured: str | None, variable: str, setting: str, what: str) -> str | None:
    path = configured or os.environ.get(variable)
    if not path:
        return None
    if not Path(path).is_file():
        raise UsageError(f"no file {path}; expected {what} weights as .npz; correct {setting} or {variable}")
    return str(Path(path).absolute())


@dataclass(frozen=True)
class _Meter:
    """A metric and its function: two uint8 batches b h w 3 in, one number for each image out."""

    info: MetricInfo
    measure: Callable[["Tensor", "Tensor"], "Tensor"]


def _meters(squeezenet: str | None, identity: str | None) -> tuple[_Meter, ...]:
    import torch

    from diffbfr.metrics import psnr, ssim

    device = "cuda" if torch.cuda.is_available() else "cpu"
    meters = [_Meter(psnr.INFO, psnr.psnr), _Meter(ssim.INFO, ssim.ssim)]
    if squeezenet is not None:
        from diffbfr.metrics.squeezenet import INFO as SQUEEZENET
        from diffbfr.metrics.squeezenet import SqueezeNetDistance

        meters.append(_network_meter(SQUEEZENET, SqueezeNetDistance(staged_file(squeezenet), device)))
    if identity is not None:
        from diffbfr.metrics.identity import INFO as IDENTITY
        from diffbfr.metrics.identity import IdentityCosine

        meters.append(_network_meter(IDENTITY, IdentityCosine(staged_file(identity), device)))
    return tuple(meters)


def _network_meter(info: MetricInfo, network: Callable[["Tensor", "Tensor"], "Tensor"]) -> _Meter:
    """A metric whose network takes images in [-1, 1]."""
    return _Meter(info, lambda a, b: network(to_tensor(a.numpy()), to_tensor(b.numpy())))


def _measure(
    task: EvaluateTask, dataset: "ShardedDataset", model: "Cascade", meters: Sequence[_Meter]
) -> EvaluateReport:
    started = time.monotonic()
    rows: list[Row] = []
    panels: list[Panel] = []
    for keys in _chunks(task.keys, task.batch):
        truth = [dataset.hq(key, task.variant) for key in keys]
        inputs = [lq_to_model(dataset.lq(key, task.variant), model.hq_px) for key in keys]
        rows += _score(keys, "lq", None, inputs, truth, meters)
        for seed in task.seeds:
            outputs = _restore(task, dataset, model, keys, seed)
            for subject, images in outputs.items():
                rows += _score(keys, subject, seed, images, truth, meters)
            if seed != task.seeds[0]:
                continue
            for i, key in enumerate(keys):
                if key in task.panels:
                    made = {subject: encode_png(images[i]) for subject, images in outputs.items()}
                    panels.append(Panel(key=key, lq=encode_png(inputs[i]), hq=encode_png(truth[i]), **made))
    metrics = tuple(meter.info for meter in meters)
    return EvaluateReport(task.index, metrics, tuple(rows), tuple(panels), time.monotonic() - started)


def _restore(
    task: EvaluateTask, dataset: "ShardedDataset", model: "Cascade", keys: Sequence[str], seed: int
) -> dict[Subject, list[Pixels]]:
    """The outputs of Algorithm 1 by subject, resized to hq_px."""
    x_0 = to_tensor([lq_to_model(dataset.lq(key, task.variant), model.lq_px) for key in keys])
    noise_keys = [
        noise_key(hashlib.sha256(dataset.lq_bytes(key, task.variant)).hexdigest(), seed=seed) for key in keys
    ]
    restoration = model.restore(x_0, noise_keys, task.mode)
    return {
        "irm1": [resize(image, model.hq_px, "bicubic") for image in to_pixels(restoration.irm1)],
        "irm2": list(to_pixels(restoration.irm2)),
        "tem": list(to_pixels(restoration.tem)),
    }


def _score(
    keys: Sequence[str],
    subject: Subject,
    seed: int | None,
    images: Sequence[Pixels],
    truth: Sequence[Pixels],
    meters: Sequence[_Meter],
) -> Iterator[Row]:
    import numpy as np
    import torch

    estimate, reference = (torch.from_numpy(np.stack(list(side))) for side in (images, truth))
    columns = [meter.measure(estimate, reference).tolist() for meter in meters]
    for key, values in zip(keys, zip(*columns, strict=True), strict=True):
        yield Row(key, subject, seed, values)


def _chunks(keys: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))


def evaluate_cascade(
    cluster: "Cluster", cascade: "ModelRef", dataset: str, config: "EvaluateConfig", mode: Mode, root: str
) -> "Evaluation":
    """Restore the held-out faces of a dataset on the cluster and score every output of Algorithm 1.

    The weights of metrics are copied below `root` where workers may be on other machines.
    """
    from pipelines.dataset.manifest import open_dataset
    from pipelines.evaluation.scores import aggregate

    def for_workers(path: str | None) -> str | None:
        return stage_file(path, root) if path and cluster.is_joined else path

    opened = open_dataset(dataset)
    template = EvaluateTask(
        index=0,
        dataset=dataset,
        cascade=cascade,
        keys=tuple(opened.keys(config.split))[: config.max_faces],
        variant=config.variant,
        seeds=config.seeds,
        mode=mode,
        batch=config.batch,
        squeezenet=for_workers(squeezenet_weights(config.squeezenet)),
        identity=for_workers(identity_weights(config.identity)),
    )
    tasks = plan_evaluation(template, config.num_panels, keys_per_task=16)
    reports = cluster.map_actors(
        partial(make_evaluator, tasks[0]),
        tasks,
        label="evaluate",
        unit="faces",
        weight=lambda task: len(task.keys),
    )
    return aggregate(tasks, reports, opened.info.content_id, config.split, opened.info.hq_px)


@driver_only
def _config(recipe: "Recipe") -> dict[str, Any]:
    """What is measured and by which weights; the batch size is left out, because it changes no score."""
    from pipelines import storage
    from pipelines.execution.artifact_store import flatten

    config = recipe.evaluate
    paths = {
        "squeezenet": squeezenet_weights(config.squeezenet),
        "identity": identity_weights(config.identity),
    }
    weights = {name: storage.digest(path) if path else "" for name, path in paths.items()}
    return without(flatten(config), "batch") | {"mode": recipe.sampling.mode} | weights


@driver_only
def _build(ctx: "RunContext", folder: str) -> "StepOutput":
    """Evaluate the cascade of this run, or the given one; write the scores, the table and the panels."""
    from pipelines import storage
    from pipelines.evaluation.scores import means, write_evaluation
    from pipelines.execution.dag import StepOutput
    from pipelines.execution.model_ref import pin_model

    cascade = ctx.given_model or pin_model(ctx.artifact_dir("cascade"))
    if ctx.cluster.is_joined and ctx.given_model:
        cascade = cascade.stage_to(storage.join(folder, "cascade"))
    recipe = ctx.recipe
    evaluation = evaluate_cascade(
        ctx.cluster, cascade, ctx.artifact_dir("shard"), recipe.evaluate, recipe.sampling.mode, ctx.store.root
    )
    files = write_evaluation(evaluation, folder)
    # an infinite PSNR is no JSON number; it stays in the evaluation's own files
    finite = {name: value for name, value in means(evaluation).items() if abs(value) != float("inf")}
    metadata: dict[str, Any] = {"faces": evaluation.protocol.num_images, **finite}
    if cascade.licences:
        metadata["licences"] = list(cascade.licences)
    content = storage.digest(storage.join(folder, "rows.csv"))
    return StepOutput({name: name for name in files}, metadata, content)


EVALUATE = StepDef(
    "evaluate", (__name__, "diffbfr.cascade", "pipelines.execution.model_ref"), _config, _build
)
