"""Evaluate a cascade on held-out faces: every output of Algorithm 1 against the ground truth, image by image.

Subjects are the low-quality input (bilinear to hq_px, as everywhere), IRM-1 (bicubic to hq_px), IRM-2 and TEM. The noise of a face is keyed
by its input file and the draw, so a score belongs to the very picture that `restore` makes of that file, in any batch, on any worker.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from diffbfr.errors import UsageError
from diffbfr.images import Pixels, encode_png, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.card import MetricCard

if TYPE_CHECKING:
    from torch import Tensor

    from diffbfr.cascade import Cascade
    from diffbfr.shards import ShardedDataset
    from pipelines.steps.pinned_cascade import PinnedCascade

Subject = Literal["lq", "irm1", "irm2", "tem"]
Mode = Literal["fast", "faithful"]
SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
TITLES: Final[Mapping[str, str]] = {"lq": "LQ", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM", "hq": "HQ"}
"""How a subject is written in tables and over pictures; `hq` is the ground truth."""

SQUEEZENET_VARIABLE: Final = "DIFFBFR_SQUEEZENET"
IDENTITY_VARIABLE: Final = "DIFFBFR_IDENTITY"


@dataclass(frozen=True)
class EvaluateTask:
    """Some held-out faces of a dataset, restored by one cascade and measured.

    `dataset` is its folder; `variant` says which pre-sampled degradation, `seeds` which draws of the sampler;
    `panels` names those of the keys whose pictures come back with the report.
    """

    index: int
    dataset: str
    cascade: "PinnedCascade"
    keys: tuple[str, ...]
    variant: int = 0
    seeds: tuple[int, ...] = (0,)
    mode: Mode = "fast"
    batch: int = 8
    squeezenet: str | None = None
    identity: str | None = None
    panels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Scores of one picture: values in the order of the report's cards. `seed` is None for the input, which nobody drew."""

    key: str
    subject: Subject
    seed: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The pictures of one face as PNG bytes, all of hq_px: the subjects (first draw) and the ground truth."""

    key: str
    lq: bytes
    irm1: bytes
    irm2: bytes
    tem: bytes
    hq: bytes

    def pictures(self) -> tuple[tuple[str, bytes], ...]:
        """Name and PNG of every picture, in the order of the columns."""
        return (("lq", self.lq), ("irm1", self.irm1), ("irm2", self.irm2), ("tem", self.tem), ("hq", self.hq))


@dataclass(frozen=True)
class EvaluateReport:
    """What one task measured: a row a picture, and the panels that were asked for."""

    index: int
    cards: tuple[MetricCard, ...]
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]
    seconds: float


def plan_evaluation(template: EvaluateTask, num_panels: int = 4, keys_per_task: int = 32) -> list[EvaluateTask]:
    """Cut a task over all keys into tasks for the workers; the panels are pinned to keys spread evenly over the hold-out."""
    if not template.keys:
        raise UsageError(f"no held-out faces in {template.dataset}; expected at least one; shard with test_fraction above 0")
    count = min(num_panels, len(template.keys))
    pinned = {template.keys[i * len(template.keys) // count] for i in range(count)}
    chunks = [template.keys[i : i + keys_per_task] for i in range(0, len(template.keys), keys_per_task)]
    return [
        replace(template, index=index, keys=chunk, panels=tuple(key for key in chunk if key in pinned))
        for index, chunk in enumerate(chunks)
    ]


def evaluate(task: EvaluateTask) -> EvaluateReport:
    """Restore and measure the faces of one task; the same task gives the same rows."""
    return make_evaluator(task)(task)


def make_evaluator(first: EvaluateTask) -> Callable[[EvaluateTask], EvaluateReport]:
    """Load networks and manifest once; return the function that serves this task and all others that differ in keys only."""
    from pipelines.manifest import open_dataset

    dataset = open_dataset(first.dataset)
    if (dataset.info.lq_px, dataset.info.hq_px) != (first.cascade.lq_px, first.cascade.hq_px):
        raise UsageError(
            f"the dataset holds {dataset.info.lq_px} -> {dataset.info.hq_px} px, the cascade in {first.cascade.folder} restores "
            f"{first.cascade.lq_px} -> {first.cascade.hq_px} px; evaluate it on a dataset of its own sizes"
        )
    meters = _meters(first.squeezenet, first.identity)
    model = first.cascade.load()

    def serve(task: EvaluateTask) -> EvaluateReport:
        if replace(task, index=first.index, keys=first.keys, panels=first.panels) != first:
            raise UsageError(
                f"task {task.index} is for {task.cascade.folder} and {task.dataset}, this worker holds {first.cascade.folder} and "
                f"{first.dataset}; expected one cascade and one dataset a worker; make another worker"
            )
        return _measure(task, dataset, model, meters)

    return serve


def squeezenet_weights(configured: str | None) -> str | None:
    """Where the user keeps SqueezeNet's weights: the configuration, else `DIFFBFR_SQUEEZENET`, else None (the metric is left out)."""
    return _given(configured, SQUEEZENET_VARIABLE, "evaluate.squeezenet", "SqueezeNet 1.0")


def identity_weights(configured: str | None) -> str | None:
    """Where the user keeps MobileFaceNet's weights: the configuration, else `DIFFBFR_IDENTITY`, else None (the metric is left out)."""
    return _given(configured, IDENTITY_VARIABLE, "evaluate.identity", "MobileFaceNet")


def _given(configured: str | None, variable: str, setting: str, what: str) -> str | None:
    path = configured or os.environ.get(variable)
    if not path:
        return None
    if not Path(path).is_file():
        raise UsageError(f"no file {path}; expected {what} weights as .npz; correct {setting} or {variable}")
    return str(Path(path).absolute())


@dataclass(frozen=True)
class _Meter:
    """A metric and how to take it: uint8 batches of equal shape in, one number a picture out."""

    card: MetricCard
    measure: Callable[["Tensor", "Tensor"], "Tensor"]


def _meters(squeezenet: str | None, identity: str | None) -> tuple[_Meter, ...]:
    import torch

    from diffbfr.metrics import psnr, ssim

    device = "cuda" if torch.cuda.is_available() else "cpu"
    meters = [_Meter(psnr.CARD, psnr.psnr), _Meter(ssim.CARD, ssim.ssim)]
    if squeezenet is not None:
        from diffbfr.metrics.squeezenet import CARD as SQUEEZENET
        from diffbfr.metrics.squeezenet import SqueezeNetDistance

        meters.append(_network_meter(SQUEEZENET, SqueezeNetDistance(squeezenet, device)))
    if identity is not None:
        from diffbfr.metrics.identity import CARD as IDENTITY
        from diffbfr.metrics.identity import IdentityCosine

        meters.append(_network_meter(IDENTITY, IdentityCosine(identity, device)))
    return tuple(meters)


def _network_meter(card: MetricCard, network: Callable[["Tensor", "Tensor"], "Tensor"]) -> _Meter:
    """A metric of pictures in [-1, 1]."""
    return _Meter(card, lambda a, b: network(to_tensor(a.numpy()), to_tensor(b.numpy())))


def _measure(task: EvaluateTask, dataset: "ShardedDataset", model: "Cascade", meters: Sequence[_Meter]) -> EvaluateReport:
    started = time.monotonic()
    rows: list[Row] = []
    panels: list[Panel] = []
    for keys in _chunks(task.keys, task.batch):
        truth = [dataset.hq(key, task.variant) for key in keys]
        inputs = [lq_to_model(dataset.lq(key, task.variant), model.hq_px) for key in keys]
        rows += _score(keys, "lq", None, inputs, truth, meters)
        for seed in task.seeds:
            outputs = _restore(task, dataset, model, keys, seed)
            for subject, pictures in outputs.items():
                rows += _score(keys, subject, seed, pictures, truth, meters)
            if seed == task.seeds[0]:
                for i, key in enumerate(keys):
                    if key in task.panels:
                        made = {subject: encode_png(pictures[i]) for subject, pictures in outputs.items()}
                        panels.append(Panel(key=key, lq=encode_png(inputs[i]), hq=encode_png(truth[i]), **made))
    cards = tuple(meter.card for meter in meters)
    return EvaluateReport(task.index, cards, tuple(rows), tuple(panels), time.monotonic() - started)


def _restore(
    task: EvaluateTask, dataset: "ShardedDataset", model: "Cascade", keys: Sequence[str], seed: int
) -> dict[Subject, list[Pixels]]:
    """Pictures of hq_px by subject, as Algorithm 1 leaves them."""
    x_0 = to_tensor([lq_to_model(dataset.lq(key, task.variant), model.lq_px) for key in keys])
    noise_keys = [noise_key(hashlib.sha256(dataset.lq_bytes(key, task.variant)).hexdigest(), seed=seed) for key in keys]
    restoration = model.restore(x_0, noise_keys, task.mode)
    return {
        "irm1": [resize(picture, model.hq_px, "bicubic") for picture in to_pixels(restoration.irm1)],
        "irm2": list(to_pixels(restoration.irm2)),
        "tem": list(to_pixels(restoration.tem)),
    }


def _score(
    keys: Sequence[str], subject: Subject, seed: int | None, pictures: Sequence[Pixels], truth: Sequence[Pixels], meters: Sequence[_Meter]
) -> Iterator[Row]:
    import numpy as np
    import torch

    estimate, reference = (torch.from_numpy(np.stack(list(side))) for side in (pictures, truth))
    columns = [meter.measure(estimate, reference).tolist() for meter in meters]
    for key, values in zip(keys, zip(*columns, strict=True), strict=True):
        yield Row(key, subject, seed, values)


def _chunks(keys: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    return (keys[i : i + size] for i in range(0, len(keys), size))
