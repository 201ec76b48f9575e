"""Measure a batch of pairs: each probe gives the values of some metrics, and features for distributions."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from diffbfr.images import Pixels, to_tensor
from pipelines.evaluation.metric_table import MetricFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Embedding: TypeAlias = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class PairBatch:
    """Pictures of one size, uint8 h w 3; `references` are not embedded where `embeds_references` is false."""

    restored: Sequence[Pixels]
    references: Sequence[Pixels]
    lqs: Sequence[Pixels | None]
    embeds_references: bool = True

    @cached_property
    def levels(self) -> tuple["Tensor", "Tensor"]:
        """Both sides as uint8 b h w 3."""
        import torch

        restored, references = (torch.from_numpy(np.stack(list(s))) for s in (self.restored, self.references))
        return restored, references

    @cached_property
    def tensors(self) -> tuple["Tensor", "Tensor"]:
        """Both sides as float b 3 h w in [-1, 1]."""
        return to_tensor(list(self.restored)), to_tensor(list(self.references))


@dataclass
class Readings:
    """What the probes found: values and features a picture, and the seconds of each probe."""

    values: dict[str, list[float]] = field(default_factory=dict)
    restored: dict[str, list["NDArray[np.float32]"]] = field(default_factory=dict)
    references: dict[str, list["NDArray[np.float32]"]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_values(self, key: str, values: "Sequence[float] | Tensor") -> None:
        """Take the values of one metric for the pictures of a batch."""
        self.values.setdefault(key, []).extend(float(value) for value in values)

    def add_features(self, embedding: str, restored: "Tensor", references: "Tensor | None") -> None:
        """Take the features of a batch."""
        self.restored.setdefault(embedding, []).extend(restored.float().numpy())
        if references is not None:
            self.references.setdefault(embedding, []).extend(references.float().numpy())


Probe: TypeAlias = Callable[[PairBatch, Readings], None]


def measure(probes: Mapping[str, Probe], batch: PairBatch, readings: Readings) -> None:
    """Run every probe on a batch, and add its seconds."""
    for name, probe in probes.items():
        started = time.perf_counter()
        probe(batch, readings)
        readings.seconds[name] = readings.seconds.get(name, 0.0) + time.perf_counter() - started


def make_probes(metrics: Sequence[str], files: MetricFiles) -> dict[str, Probe]:
    """The probes for some metrics, whose networks are loaded once."""
    wanted = set(metrics)
    device = _device()
    probes: dict[str, Probe] = {}
    if found := _pixel_probes(wanted):
        probes |= found
    for trunk in ("alex", "vgg"):
        if f"lpips_{trunk}" in wanted:
            from diffbfr.metrics.lpips import Lpips

            weights = files.lpips_alex if trunk == "alex" else files.lpips_vgg
            probes[f"lpips_{trunk}"] = _on_tensors(f"lpips_{trunk}", Lpips(trunk, weights, device))
    if "niqe" in wanted:
        probes["niqe"] = _niqe_probe(files.niqe)
    if "squeezenet_distance" in wanted:
        from diffbfr.metrics.squeezenet import SqueezeNetDistance

        distance = SqueezeNetDistance(files.squeezenet, device)
        probes["squeezenet_distance"] = _on_tensors("squeezenet_distance", distance)
    if wanted & {"identity_cosine", "identity_degree", "frechet_dlib"}:
        probes["dlib"] = _dlib_probe(files.face_resnet, wanted, device)
    if wanted & {"mobilefacenet_cosine", "frechet_mobilefacenet"}:
        probes["mobilefacenet"] = _mobilefacenet_probe(files.mobilefacenet, wanted, device)
    if "landmark_distance" in wanted:
        probes["landmark_distance"] = _landmark_probe(files.detector)
    if wanted & {"fid", "kid"}:
        from diffbfr.metrics.frechet import FID_EMBEDDING
        from diffbfr.metrics.inception import InceptionFeatures

        probes["inception"] = _features_only(FID_EMBEDDING, InceptionFeatures(files.inception, device))
    return probes


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _pixel_probes(wanted: set[str]) -> dict[str, Probe]:
    from diffbfr.metrics.consistency import consistency
    from diffbfr.metrics.psnr import psnr, psnr_y
    from diffbfr.metrics.ssim import ssim, ssim_y

    functions = {"psnr": psnr, "psnr_y": psnr_y, "ssim": ssim, "ssim_y": ssim_y}

    def on_levels(key: str) -> Probe:
        return lambda batch, readings: readings.add_values(key, functions[key](*batch.levels))

    def consistencies(batch: PairBatch, readings: Readings) -> None:
        pairs = zip(batch.restored, batch.lqs, strict=True)
        values = [consistency(restored, lq) for restored, lq in pairs if lq is not None]
        readings.add_values("consistency", values)

    probes = {key: on_levels(key) for key in functions if key in wanted}
    return probes | ({"consistency": consistencies} if "consistency" in wanted else {})


def _on_tensors(key: str, distance: Callable[["Tensor", "Tensor"], "Tensor"]) -> Probe:
    return lambda batch, readings: readings.add_values(key, distance(*batch.tensors))


def _niqe_probe(weights: str) -> Probe:
    from diffbfr.metrics.niqe import load_pristine, niqe

    pristine = load_pristine(weights)
    return lambda batch, readings: readings.add_values("niqe", niqe(batch.levels[0], pristine))


def _landmark_probe(weights: str) -> Probe:
    from diffbfr.faces.weights import load_detector
    from diffbfr.metrics.landmarks import landmark_distance

    detector = load_detector(Path(weights))

    def five_points(pixels: Pixels) -> "NDArray[np.float64] | None":
        faces = detector.detect(pixels)
        return faces[0].points_array if faces else None

    def probe(batch: PairBatch, readings: Readings) -> None:
        values = landmark_distance(batch.restored, batch.references, five_points)
        readings.add_values("landmark_distance", values)

    return probe


def _features_only(embedding: str, network: Embedding) -> Probe:
    def probe(batch: PairBatch, readings: Readings) -> None:
        restored, references = batch.tensors
        embedded = network(references) if batch.embeds_references else None
        readings.add_features(embedding, network(restored), embedded)

    return probe


def _dlib_probe(weights: str, wanted: set[str], device: str) -> Probe:
    from torch.nn.functional import normalize

    from diffbfr.metrics.face_resnet import FaceEmbedding, degrees
    from diffbfr.metrics.frechet import DLIB_EMBEDDING

    network = FaceEmbedding(weights, device)

    def probe(batch: PairBatch, readings: Readings) -> None:
        restored, references = (network(side) for side in batch.tensors)
        cosine = (normalize(restored.double()) * normalize(references.double())).sum(dim=1)
        if "identity_cosine" in wanted:
            readings.add_values("identity_cosine", cosine)
        if "identity_degree" in wanted:
            readings.add_values("identity_degree", degrees(cosine))
        if "frechet_dlib" in wanted:
            readings.add_features(DLIB_EMBEDDING, restored, references)

    return probe


def _mobilefacenet_probe(weights: str, wanted: set[str], device: str) -> Probe:
    from diffbfr.metrics.frechet import MOBILEFACENET_EMBEDDING
    from diffbfr.metrics.identity import IdentityCosine

    network = IdentityCosine(weights, device)

    def probe(batch: PairBatch, readings: Readings) -> None:
        restored, references = (network.embed(side) for side in batch.tensors)
        if "mobilefacenet_cosine" in wanted:
            readings.add_values("mobilefacenet_cosine", (restored * references).sum(dim=1))
        if "frechet_mobilefacenet" in wanted:
            readings.add_features(MOBILEFACENET_EMBEDDING, restored, references)

    return probe
