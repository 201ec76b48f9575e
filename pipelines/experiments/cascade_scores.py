"""Study: every output of Algorithm 1 on held-out faces by LPIPS and FID, beside PSNR, SSIM and the others.

    python -m pipelines.experiments.cascade_scores OUT --model packaged --recipe tiny --root ROOT \\
        [--faces FACES] [--split test|val|all] [--seeds 0,1,2] [--max-faces N] [--workers 2]

The faces are those on which `diffbfr evaluate --model MODEL --recipe RECIPE` measures a cascade, and so are
the restorations. They are written to OUT as PNG, and scored as the outputs of any method are, under the card
ffhq-holdout. A cell is the mean over faces with its 95 % interval, each face averaged over its restorations;
FID is the mean over seeds. `--split all` is for FACES of which no stage was trained on any. With --set
PATH=VALUE the recipe is changed, as in `diffbfr evaluate`. The same command continues. Writes OUT/table.txt,
which it prints, and OUT/table.json.
"""

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, get_args

from diffbfr.cascade import Cascade, cascade_digest
from diffbfr.checkpoint import read_stage_spec
from diffbfr.cost.threads import single_thread
from diffbfr.errors import UsageError
from diffbfr.images import Pixels, lq_to_model, resize, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.metrics.intervals import Interval
from diffbfr.packaged import named_folder
from diffbfr.shards import ShardedDataset
from diffbfr.shards.schema import Split
from diffbfr.stages import PACKAGED
from diffbfr.text import format_columns
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.metric_table import metric_table
from pipelines.evaluation.pair_scores import PairScores
from pipelines.evaluation.scores import format_interval
from pipelines.evaluation.types import SUBJECTS, TITLES
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.experiments.command import run_command
from pipelines.experiments.scored_folders import over_seeds, score_folder, write_pictures
from pipelines.experiments.spread import parse_seeds
from pipelines.flows import train_cascade
from pipelines.recipes.overrides import add_option, load
from pipelines.recipes.recipe import Recipe

METRICS: Final = (
    "psnr",
    "ssim",
    "lpips_alex",
    "fid",
    "frechet_dlib",
    "identity_cosine",
    "squeezenet_distance",
)
KEYS_PER_TASK: Final = 8
ALL: Final = "all"
"""Every split of a dataset."""
Table = Mapping[str, Mapping[str, Interval | float | None]]
"""Subject -> metric -> value."""


@dataclass(frozen=True)
class OutputTask:
    """Some faces to restore with one seed; `folder` gets a folder a subject."""

    dataset: str
    keys: tuple[str, ...]
    model: str
    seed: int
    folder: Path


def make_outputs(task: OutputTask) -> int:
    """Write every output of Algorithm 1 for the faces of a task; runs on a worker."""
    dataset, cascade = open_dataset(task.dataset), Cascade.load(Path(task.model))
    with single_thread():
        for subject, images in _outputs(dataset, cascade, task).items():
            write_pictures(task.folder / subject, dict(zip(task.keys, images, strict=True)))
    return len(task.keys)


def _outputs(dataset: ShardedDataset, cascade: Cascade, task: OutputTask) -> dict[str, list[Pixels]]:
    lqs = [dataset.lq(key, 0) for key in task.keys]
    x_0 = to_tensor([lq_to_model(lq, cascade.lq_px) for lq in lqs])
    digests = [hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest() for key in task.keys]
    made = cascade.restore(x_0, [noise_key(content, seed=task.seed) for content in digests])
    px = cascade.hq_px
    return {
        "lq": [lq_to_model(lq, px) for lq in lqs],
        "irm1": [resize(image, px, "bicubic") for image in to_pixels(made.irm1)],
        "irm2": list(to_pixels(made.irm2)),
        "tem": list(to_pixels(made.tem)),
    }


def score_cascade(
    model: Path,
    dataset: str,
    keys: tuple[str, ...],
    seeds: Sequence[int],
    out: Path,
    cluster: Cluster,
    subjects: Sequence[str] = SUBJECTS,
    metrics: tuple[str, ...] = METRICS,
) -> dict[str, list[PairScores]]:
    """Restore and score; the scores of each subject, one for each seed (of the input one alone)."""
    opened = open_dataset(dataset)
    missing = [key for key in keys if not (out / "reference" / f"{key}.png").is_file()]
    write_pictures(out / "reference", {key: opened.hq(key, 0) for key in missing})
    tasks = []
    for seed in seeds:
        folder = out / str(seed)
        for start in range(0, len(keys), KEYS_PER_TASK):
            chunk = keys[start : start + KEYS_PER_TASK]
            if not all((folder / "tem" / f"{key}.png").is_file() for key in chunk):
                tasks.append(OutputTask(dataset, chunk, str(model), seed, folder.absolute()))
    if tasks:
        cluster.map(make_outputs, tasks, label="restore", unit="faces", weight=lambda task: len(task.keys))
    scored: dict[str, list[PairScores]] = {}
    for subject in subjects:
        of_subject = seeds[:1] if subject == "lq" else seeds
        scored[subject] = [_score(out, seed, subject, cluster, metrics) for seed in of_subject]
    return scored


def _score(out: Path, seed: int, subject: str, cluster: Cluster, metrics: tuple[str, ...]) -> PairScores:
    place = Path(str(seed), subject)
    return score_folder(out / place, out / "reference", out / "scores" / place, cluster, metrics)


def tabulate(scored: Mapping[str, Sequence[PairScores]]) -> Table:
    """Every subject's metrics over its seeds."""
    table: dict[str, dict[str, Interval | float | None]] = {}
    for subject, scores in scored.items():
        table[subject] = {metric: over_seeds(scores, metric) for metric in METRICS}
    return table


def format_table(table: Table, scored: Mapping[str, Sequence[PairScores]]) -> str:
    """The table as text, and why metrics are missing."""
    infos = metric_table()
    rows = [["", *(f"{infos[m].info.label} {_arrow(m)}" for m in METRICS)]]
    for subject, values in table.items():
        rows.append([TITLES[subject], *map(_cell, values.values())])
    first = next(iter(scored.values()))[0]
    seeds = max(map(len, scored.values()))
    lines = [
        format_columns(rows),
        "",
        f"{len(first.keys)} faces, {seeds} restorations each, card {first.card.name}",
    ]
    lines += [f"{line.info.name}: {line.unavailable}" for line in first.lines if line.unavailable]
    fid = first.line("fid")
    if fid is not None and fid.score is not None and fid.score.note:
        lines.append(f"FID: {fid.score.note}")
    return "\n".join(lines)


def _arrow(metric: str) -> str:
    return "↑" if metric_table()[metric].info.better == "higher" else "↓"


def _cell(value: Interval | float | None) -> str:
    if value is None:
        return "unavailable"
    return format_interval(value) if isinstance(value, Interval) else f"{value:.4g}"


def run(model: Path, recipe: Recipe, root: str, split: str, seeds: Sequence[int], out: Path) -> str:
    """Shard the faces of the recipe, restore the held-out ones, score, and write the table."""
    cascade_digest(model)
    found, wanted = read_stage_spec(model, "tem").px, recipe.data.hq_px
    if found != wanted:
        raise UsageError(f"{model} makes {found} px, recipe {recipe.name} {wanted} px; expected one size")
    report = train_cascade.run(recipe, root, until="shard")
    store = ArtifactStore(root)
    record = store.by_id(report.steps[-1].artifact)
    assert record is not None
    dataset = store.artifact_dir(record.identity)
    keys = keys_of(open_dataset(dataset), split)[: recipe.evaluate.max_faces]
    if len(keys) < 2:
        raise UsageError(f"found {len(keys)} faces of split {split}; expected at least 2; hold out more")
    with Cluster(recipe.cluster) as cluster:
        scored = score_cascade(model, dataset, keys, seeds, out, cluster)
    table = tabulate(scored)
    text = format_table(table, scored)
    (out / "table.txt").write_text(f"{text}\n")
    (out / "table.json").write_text(json.dumps(_plain(table), indent=1) + "\n")
    return text


def keys_of(dataset: ShardedDataset, split: str) -> tuple[str, ...]:
    """The keys of one split or of all, sorted."""
    names = get_args(Split) if split == ALL else (split,)
    return tuple(sorted(itertools.chain.from_iterable(map(dataset.keys, names))))


def _plain(table: Table) -> dict[str, dict[str, object]]:
    plain: dict[str, dict[str, object]] = {}
    for subject, values in table.items():
        plain[subject] = {metric: _plain_value(value) for metric, value in values.items()}
    return plain


def _plain_value(value: Interval | float | None) -> object:
    return asdict(value) if isinstance(value, Interval) else value


def main(words: Sequence[str] | None = None) -> None:
    """Run the command of this module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=PACKAGED)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--root", required=True)
    parser.add_argument("--faces")
    parser.add_argument("--split", default="test", choices=("val", "test", ALL))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--max-faces", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    given = parser.parse_args(words)
    recipe = load(given.recipe, None, add_option(given.set, "--faces", "data.faces", given.faces or None))
    recipe = replace(
        recipe,
        evaluate=replace(recipe.evaluate, max_faces=given.max_faces),
        cluster=replace(recipe.cluster, num_workers=given.workers),
    )
    model = named_folder(given.model)
    seeds = parse_seeds(given.seeds)
    sys.stdout.write(f"{run(model, recipe, given.root, given.split, seeds, given.out)}\n")


if __name__ == "__main__":
    run_command(main)
