"""Study: what samplers of a cascade's stages make of held-out faces, to choose them by several metrics.

    python -m pipelines.experiments.sampler_scores OUT --root ROOT --model faces [--split val] [--max-faces N]
        --samplers 'irm2=sde_dpmpp_2m:4:2.2' --samplers 'irm2=sde_dpmpp_2m:4:1.0 tem=sde_dpmpp_2m:4:4.0@15'

A sampler is STAGE=SOLVER:EVALUATIONS[:END][@START]; a stage that is not named keeps its own, and the own
samplers of the cascade come first. The faces are those of the root's newest dataset, restored with the noise
of `diffbfr evaluate` at the paper's fidelity. Columns after each stage: LPIPS, PSNR, identity, and over all
faces FID and the Frechet distance of dlib's embedding, by the weights of `diffbfr setup metrics`. Results
are kept under OUT by cascade, faces and samplers, and OUT/samplers.txt gets the table: the same command goes
on.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.cost.threads import single_thread
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.metrics.face_resnet import FaceEmbedding
from diffbfr.metrics.frechet import (
    DLIB_EMBEDDING,
    FID_EMBEDDING,
    NUM_FEATURES,
    FeatureStatistics,
    MomentAccumulator,
    frechet_distance,
)
from diffbfr.metrics.inception import InceptionFeatures
from diffbfr.packaged import named_folder
from diffbfr.shards import ShardedDataset
from diffbfr.stages import PACKAGED, STAGE_NAMES
from diffbfr.text import format_columns
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.command import run_command
from pipelines.experiments.sampler_words import sampled
from pipelines.experiments.stage_scores import Faces, Meters, open_faces
from pipelines.packages.metric_weights import FACE_RESNET
from pipelines.packages.weights import find_weights

OWN: Final = ""
"""The samplers that a cascade comes with."""
BATCH: Final = 8
TITLES: Final = {"lq": "input", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM"}
Values: TypeAlias = Mapping[str, Mapping[str, float]]
"""Stage -> metric -> value."""


def set_samplers(cascade: Cascade, samplers: str) -> None:
    """Sample stages of a loaded cascade in another way, named by words such as `tem=ddim:4:3.0@15`."""
    stages = {"irm1": cascade.irm1, "irm2": cascade.irm2, "tem": cascade.tem}
    for text in samplers.split():
        name, separator, word = text.partition("=")
        if not separator or name not in stages:
            raise UsageError(
                f"found {text!r}; expected {', '.join(stages)} with its sampler, such as tem=ddim:4:3.0@15"
            )
        stages[name].spec = sampled(stages[name].spec, word)


class Judge:
    """Compares pictures of some faces with their ground truths, one by one and as a whole."""

    def __init__(self, faces: Faces) -> None:
        self._meters = Meters()
        self._embed: dict[str, Callable[[Tensor], Tensor]] = {
            DLIB_EMBEDDING: FaceEmbedding(cast("Path", find_weights(FACE_RESNET.name)))
        }
        if (inception := find_weights(FID_EMBEDDING)) is not None:
            self._embed[FID_EMBEDDING] = InceptionFeatures(inception)
        self._faces = faces
        self._truth = self._statistics(faces.truth)

    def score(self, made: Sequence[Pixels]) -> dict[str, float]:
        """The mean of each metric over the faces, FID, and the Frechet distance of dlib's embedding."""
        means = {
            metric: float(np.mean(values))
            for metric, values in self._meters.measure(made, self._faces.truth).items()
        }
        distances = {
            name: frechet_distance(found, self._truth[name]) for name, found in self._statistics(made).items()
        }
        means["frechet-dlib"] = 1000 * distances[DLIB_EMBEDDING]
        return means | ({"fid": distances[FID_EMBEDDING]} if FID_EMBEDDING in distances else {})

    @torch.no_grad()
    def _statistics(self, images: Sequence[Pixels]) -> dict[str, FeatureStatistics]:
        widths = {FID_EMBEDDING: NUM_FEATURES, DLIB_EMBEDDING: 128}
        moments = {name: MomentAccumulator(widths[name]) for name in self._embed}
        for first in range(0, len(images), BATCH):
            part = to_tensor(list(images[first : first + BATCH]))
            for name, embed in self._embed.items():
                moments[name].add(embed(part).numpy())
        return {name: found.statistics(name) for name, found in moments.items()}


def restore(cascade: Cascade, faces: Faces) -> dict[str, list[Pixels]]:
    """The pictures after each stage, at the size of the result."""
    x_0: Float[Tensor, "n 3 px px"] = to_tensor(
        [lq_to_model(faces.dataset.lq(key, 0), cascade.lq_px) for key in faces.keys]
    )
    keys = faces.noise_keys(0)
    made: dict[str, list[Pixels]] = {name: [] for name in STAGE_NAMES}
    for first in range(0, len(keys), BATCH):
        part = slice(first, first + BATCH)
        done = cascade.restore(x_0[part], keys[part])
        made["irm1"] += [resize(image, cascade.hq_px, "bicubic") for image in to_pixels(done.irm1)]
        made["irm2"] += list(to_pixels(done.irm2))
        made["tem"] += list(to_pixels(done.tem))
    return made


def format_table(scored: Mapping[str, Values], evaluations: Mapping[str, str]) -> str:
    """A row for each set of samplers and stage."""
    rows: list[Sequence[str]] = [
        [
            "samplers",
            "after",
            "LPIPS ↓",
            "PSNR ↑",
            "identity ↑",
            "FID ↓",
            "frechet-dlib (1e-3) ↓",
            "evaluations",
        ]
    ]
    for name, stages in scored.items():
        for stage, found in stages.items():
            if stage == "lq" and name != OWN:
                continue
            cells = [f"{found['lpips']:.4f}", f"{found['psnr']:.2f}", f"{found['identity']:.4f}"]
            fid = f"{found['fid']:.1f}" if "fid" in found else "unavailable"
            wholes = [fid, f"{found['frechet-dlib']:.1f}"]
            last = evaluations[name] if stage == "tem" else ""
            rows.append([name or "its own", TITLES[stage], *cells, *wholes, last])
    return format_columns(rows)


def score_samplers(
    folder: Path, dataset: ShardedDataset, keys: tuple[str, ...], samplers: Sequence[str], out: Path
) -> str:
    """Restore faces of a dataset and score them with each set of samplers; the table of all."""
    faces, judge = open_faces(dataset, keys), None
    scored, evaluations = {}, {}
    for text in (OWN, *samplers):
        cascade = Cascade.load(folder)
        set_samplers(cascade, text)
        specs = [cascade.irm1.spec, cascade.irm2.spec, cascade.tem.spec]
        evaluations[text] = "+".join(str(spec.fast.num_evaluations) for spec in specs)
        identity = [cascade_digest(folder), dataset.info.content_id, keys, [repr(spec) for spec in specs]]
        place = out / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"
        if not place.is_file():
            judge = judge or Judge(faces)
            with single_thread():
                pictures = {"lq": faces.inputs} | restore(cascade, faces)
                values = {stage: judge.score(images) for stage, images in pictures.items()}
            out.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(values) + "\n")
        scored[text] = json.loads(place.read_text())
    return format_table(scored, evaluations)


def run(model: str, root: str, split: str, samplers: Sequence[str], max_faces: int, out: Path) -> str:
    """Score a cascade's samplers on the newest dataset of a root; OUT/samplers.txt gets the table too."""
    store = ArtifactStore(root)
    record = store.latest("shard")
    if record is None:
        raise UsageError(f"{root} holds no dataset; expected one; run `diffbfr shard --root {root}`")
    dataset = open_dataset(store.artifact_dir(record.identity))
    keys = tuple(dataset.keys(split))[:max_faces]  # type: ignore[arg-type]
    if len(keys) < 2:
        raise UsageError(f"found {len(keys)} faces of split {split}; expected at least 2; hold out more")
    table = score_samplers(named_folder(model), dataset, keys, samplers, out)
    text = f"{len(keys)} faces of split {split}\n\n{table}"
    (out / "samplers.txt").write_text(f"{text}\n")
    return text


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", default=PACKAGED)
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--max-faces", type=int, default=128)
    parser.add_argument("--samplers", action="append", default=[])
    given: Any = parser.parse_args(words)
    text = run(given.model, given.root, given.split, given.samplers, given.max_faces, given.out)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    run_command(main)
