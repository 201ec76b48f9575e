"""Study: LPIPS, PSNR and identity after each stage of cascades, for a grid of starts, and by group of people.

    python -m pipelines.experiments.stage_scores OUT --root ROOT [--model packaged] [--model FOLDER ...]
        [--starts 0.5,0.75,1,auto] [--split val] [--seeds 0] [--max-faces N] [--groups fairface.csv] [--few]

The faces are held-out ones of the root's newest dataset, restored with the noise of `diffbfr evaluate`. A
start is a fidelity (`StageSpec.start_at`), or `auto`: each face's own (`diffbfr.faces.detail`). IRM-1 runs
once for all starts. The first model is the one that the others are compared with, face by face: a student
with its teacher. --few also scores the first model's own weights with a student's evaluations, which shows
what distillation has to beat.

Tables: each stage at each start; the starts for thirds of the faces by the detail of their inputs; with
--groups (columns `file` and `group`) each group against the mean of all. LPIPS and the identity cosine need
`diffbfr setup metrics`. Results are kept under OUT by model and start: the same command goes on.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.cost.threads import single_thread
from diffbfr.errors import UsageError
from diffbfr.faces.detail import adaptive_fidelity, kept_detail
from diffbfr.images import Pixels, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.face_resnet import FaceCosine, FaceEmbedding
from diffbfr.metrics.lpips import Lpips
from diffbfr.metrics.psnr import psnr
from diffbfr.packaged import named_folder
from diffbfr.shards import ShardedDataset
from diffbfr.stages import PACKAGED, STAGE_NAMES
from diffbfr.text import format_columns
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.command import run_command
from pipelines.experiments.group_scores import GroupScore, format_groups, group_scores, read_groups
from pipelines.experiments.spread import parse_seeds
from pipelines.experiments.stage_tables import Scored, comparison_table, detail_table, stage_table
from pipelines.packages.metric_weights import FACE_RESNET
from pipelines.packages.weights import find_weights
from pipelines.recipes.distilled import with_few_evaluations

AUTO: Final = "auto"
_BATCH: Final = 8


class Meters:
    """LPIPS (Alex), PSNR and identity cosine of pictures against the ground truths."""

    def __init__(self) -> None:
        paths = {name: find_weights(name) for name in ("lpips-alex", FACE_RESNET.name)}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise UsageError(f"no weights of {missing[0]}; expected them; run `diffbfr setup metrics`")
        self._lpips = Lpips("alex", paths["lpips-alex"])  # type: ignore[arg-type]
        self._identity = FaceCosine(FaceEmbedding(paths[FACE_RESNET.name]))  # type: ignore[arg-type]

    @torch.no_grad()
    def measure(self, made: Sequence[Pixels], truth: Sequence[Pixels]) -> dict[str, list[float]]:
        """A value a face of each metric."""
        a, b = to_tensor(list(made)), to_tensor(list(truth))
        bytes_a, bytes_b = (torch.from_numpy(np.stack(list(side))) for side in (made, truth))
        return {
            "lpips": self._lpips(a, b).tolist(),
            "psnr": psnr(bytes_a, bytes_b).tolist(),
            "identity": self._identity(a, b).tolist(),
        }


@dataclass(frozen=True)
class Faces:
    """Held-out faces: ground truths and inputs at the size of the output, and the detail of the inputs."""

    dataset: ShardedDataset
    keys: tuple[str, ...]
    truth: list[Pixels]
    inputs: list[Pixels]
    details: list[float]

    def noise_keys(self, seed: int) -> list[str]:
        """The noise of each face, as in an evaluation."""
        contents = [hashlib.sha256(self.dataset.lq_bytes(key, 0)).hexdigest() for key in self.keys]
        return [noise_key(content, seed=seed) for content in contents]

    def fidelities(self, start: str) -> list[float]:
        """The fidelity of each face at a start."""
        if start == AUTO:
            return [adaptive_fidelity(detail) for detail in self.details]
        return [float(start)] * len(self.keys)


def open_faces(dataset: ShardedDataset, keys: tuple[str, ...]) -> Faces:
    """Read some faces of a dataset."""
    px = dataset.info.hq_px
    inputs = [lq_to_model(dataset.lq(key, 0), px) for key in keys]
    details = [kept_detail(image.astype(np.float32).mean(2)) for image in inputs]
    return Faces(dataset, keys, [dataset.hq(key, 0) for key in keys], inputs, details)


def score_cascade(
    cascade: Cascade, faces: Faces, starts: Sequence[str], seeds: Sequence[int], meters: Meters, place: Path
) -> dict[str, Scored]:
    """Restore and measure at each start; what `place` already holds is read."""
    scored = {start: found for start in starts if (found := _read(place / f"{start}.json")) is not None}
    left = [start for start in starts if start not in scored]
    if not left:
        return scored
    x_0 = to_tensor([lq_to_model(faces.dataset.lq(key, 0), cascade.lq_px) for key in faces.keys])
    lows, low_seconds = {}, 0.0
    for seed in seeds:
        began = time.perf_counter()
        keys = faces.noise_keys(seed)
        parts = [cascade.identity(x_0[part], keys[part]) for part in _parts(len(keys))]
        lows[seed] = torch.cat(parts)
        low_seconds += (time.perf_counter() - began) / len(seeds)
    for start in left:
        rows: dict[str, dict[str, list[list[float]]]] = {}
        seconds = 0.0
        for seed in seeds:
            keys, fidelity = faces.noise_keys(seed), faces.fidelities(start)
            made: dict[str, list[Pixels]] = {name: [] for name in STAGE_NAMES}
            for part in _parts(len(keys)):
                began = time.perf_counter()
                done = cascade.enhance(lows[seed][part], x_0[part], keys[part], fidelity=fidelity[part])
                seconds += (time.perf_counter() - began) / len(seeds)
                low = [resize(image, cascade.hq_px, "bicubic") for image in to_pixels(done.irm1)]
                for name, images in (
                    ("irm1", low),
                    ("irm2", to_pixels(done.irm2)),
                    ("tem", to_pixels(done.tem)),
                ):
                    made[name] += list(images)
            for name, images in ({"lq": faces.inputs} | made).items():
                values = meters.measure(images, faces.truth)
                for metric, column in values.items():
                    rows.setdefault(name, {}).setdefault(metric, []).append(column)
        stages = (cascade.irm1.spec, cascade.irm2.spec, cascade.tem.spec)
        evaluations = tuple(stage.fast.num_evaluations for stage in stages)
        total = (seconds + low_seconds) / len(faces.keys)
        scored[start] = Scored(evaluations, total, _over_seeds(rows))
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{start}.json").write_text(json.dumps(asdict(scored[start])) + "\n")
    return {start: scored[start] for start in starts}


def take_few(cascade: Cascade) -> None:
    """Sample the stages of a loaded cascade with the evaluations of its students, without training."""
    for stage in (cascade.irm1, cascade.irm2, cascade.tem):
        stage.spec = with_few_evaluations(stage.spec)


def _parts(count: int) -> list[slice]:
    return [slice(first, first + _BATCH) for first in range(0, count, _BATCH)]


def _over_seeds(rows: Mapping[str, Mapping[str, list[list[float]]]]) -> dict[str, dict[str, list[float]]]:
    """Each face's mean over its seeds."""
    means: dict[str, dict[str, list[float]]] = {}
    for stage, metrics in rows.items():
        means[stage] = {metric: np.mean(columns, 0).tolist() for metric, columns in metrics.items()}
    return means


def _read(file: Path) -> Scored | None:
    if not file.is_file():
        return None
    values = json.loads(file.read_text())
    return Scored(tuple(values["evaluations"]), values["seconds"], values["rows"])


@dataclass(frozen=True)
class StageScores:
    """Model -> start -> scores, the faces and their split, groups at the first start, and the tables."""

    scored: Mapping[str, Mapping[str, Scored]]
    split: str
    faces: int
    groups: Mapping[str, Sequence[GroupScore]]
    text: str


def run(
    models: Mapping[str, Path],
    root: str,
    split: str,
    starts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    max_faces: int | None = None,
    groups: Path | None = None,
    dataset_id: str = "",
    *,
    few: bool = False,
) -> StageScores:
    """Score every model at every start, with `few` the first also with a student's samplers.

    The faces are those of the root's dataset of an id, the newest if it is "". OUT/tables.txt gets the
    tables.
    """
    store = ArtifactStore(root)
    record = store.by_id(dataset_id) if dataset_id else store.latest("shard")
    if record is None:
        raise UsageError(
            f"{root} holds no dataset {dataset_id}; expected one; run `diffbfr shard --root {root}`"
        )
    dataset = open_dataset(store.artifact_dir(record.identity))
    keys = tuple(dataset.keys(split))[:max_faces]  # type: ignore[arg-type]
    if len(keys) < 3:
        raise UsageError(f"found {len(keys)} faces of split {split}; expected at least 3; hold out more")
    out.mkdir(parents=True, exist_ok=True)
    meters, faces = Meters(), open_faces(dataset, keys)
    run_id = hashlib.sha256(json.dumps([record.content, keys, list(seeds)]).encode()).hexdigest()[:12]
    scored = {}
    chosen = [(name, folder, False) for name, folder in models.items()]
    chosen += [(f"{name}, few", folder, True) for name, folder, _ in chosen[:1] if few]
    for name, folder, is_few in chosen:
        cascade = Cascade.load(folder)
        if cascade.hq_px != dataset.info.hq_px:
            raise UsageError(
                f"{name} makes {cascade.hq_px} px, the dataset of {root} has {dataset.info.hq_px}; expected "
                "one size"
            )
        if is_few:
            take_few(cascade)
        place = out / f"{cascade_digest(folder)[:12]}-{run_id}{'-few' * is_few}"
        with single_thread():
            scored[name] = score_cascade(cascade, faces, starts, seeds, meters, place)
    tables = [stage_table(scored)]
    tables += [comparison_table(scored)] if len(scored) > 1 else []
    first = next(iter(scored.values()))
    tables += [detail_table(first, faces.details)] if len(starts) > 1 else []
    parts = [
        f"{len(keys)} faces of split {split}, {len(seeds)} restorations each",
        *map(format_columns, tables),
    ]
    by_group = {}
    if groups is not None:
        named = read_groups(groups, dataset, keys)
        for name, found in scored.items():
            by_group[name] = group_scores(found[starts[0]].rows["tem"], named)
            parts.append(f"{name}, start {starts[0]}\n{format_groups(by_group[name])}")
    text = "\n\n".join(parts)
    (out / "tables.txt").write_text(f"{text}\n")
    return StageScores(scored, split, len(keys), by_group, text)


def _parse_starts(text: str) -> tuple[str, ...]:
    starts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for start in starts:
        try:
            fits = start == AUTO or 0 <= float(start) <= 1
        except ValueError:
            fits = False
        if not fits:
            raise UsageError(f"a start is {start!r}; expected fidelities from 0 to 1, or {AUTO}")
    return starts


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--model", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--starts", default="0.5")
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--max-faces", type=int)
    parser.add_argument("--groups", type=Path)
    parser.add_argument("--few", action="store_true")
    given: Any = parser.parse_args(words)
    models = {name: named_folder(name) for name in given.model or [PACKAGED]}
    found = run(
        models,
        given.root,
        given.split,
        _parse_starts(given.starts),
        parse_seeds(given.seeds),
        given.out,
        given.max_faces,
        given.groups,
        few=given.few,
    )
    sys.stdout.write(f"{found.text}\n")


if __name__ == "__main__":
    run_command(main)
