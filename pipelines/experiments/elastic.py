"""One training on 1, 2 and 4 workers and through 2, 1, 2: its losses step by step, and a picture of how they
differ.

    python -m pipelines.experiments.elastic FOLDER TARGET

e.g. build/elastic infra/figures/elastic; minutes on two cores.

IRM-1's small network with Table 6's dropout, on procedural faces; every worker is a process of torchrun with
one thread. All runs once with `training.reduce_leaves=4`, which fixes the order of every sum, and once
without. FOLDER keeps the data and the trainings, TARGET gets the endings .svg and .json.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from diffbfr.stages import IRM1, IRM1_TINY
from diffbfr.training.config import TrainingConfig
from pipelines.recipes.presets import smoke
from pipelines.sources import open_source

STAGE = replace(IRM1_TINY, unet=replace(IRM1_TINY.unet, dropout=IRM1.unet.dropout))
CONFIG = TrainingConfig(
    num_samples=480, global_batch=8, learning_rate=1e-3, checkpoint_samples=80, max_gradient_norm=1.0
)
PARTS = {"parts of the batch added in one order": 4, "in any order": None}
LOSSES = "losses.jsonl"
RUNS = {
    "1 worker": [(1, 60)],
    "2 workers": [(2, 60)],
    "4 workers": [(4, 60)],
    "2, 1, 2 workers": [(2, 24), (1, 46), (2, 60)],
}
"""Workers, and the step before which they are taken away; the last checkpoint before it is gone on from."""


class TakenAwayError(Exception):
    """Ends a rank where its machine would be lost."""


def train_rank(folder: str, data: str, until: int, parts: int | None) -> None:
    """One rank, started by torchrun: train until a step; rank 0 notes every loss."""
    import torch
    from torch import distributed as dist

    from diffbfr.training.loop import Run, StepMetrics, train
    from pipelines.dataset.manifest import open_dataset

    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")

    def report(metrics: StepMetrics) -> None:
        with Path(folder, LOSSES).open("a") as file:
            file.write(json.dumps([metrics.step, metrics.loss]) + "\n")

    def heartbeat(done: int) -> None:
        if done == until < CONFIG.num_steps:
            raise TakenAwayError

    try:
        train(
            Run(STAGE, replace(CONFIG, reduce_leaves=parts), open_dataset(data), Path(folder)),
            report,
            heartbeat=heartbeat,
            report_every_s=0,
        )
    except TakenAwayError:
        pass
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def measure(folder: Path, data: str, parts: int | None) -> dict[str, list[float]]:
    """Losses of each run, step by step; a step that was run again counts as it came out last."""
    curves = {}
    for name, pieces in RUNS.items():
        place = folder / name.replace(", ", "-").replace(" ", "-")
        place.mkdir(parents=True)
        for workers, until in pieces:
            command = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={workers}",
                "-m",
                "pipelines.experiments.elastic",
            ]
            subprocess.run(
                [sys.executable, *command, "--rank", str(place), data, str(until), str(parts or 0)],
                check=True,
            )
        steps: dict[int, float] = dict(json.loads(line) for line in (place / LOSSES).read_text().splitlines())
        curves[name] = [steps[step] for step in range(1, CONFIG.num_steps + 1)]
    return curves


def differences(curves: dict[str, list[float]]) -> list[float]:
    """At each step the largest difference of a run from that of one worker, relative to it."""
    one = curves["1 worker"]
    return [max(abs(curve[step] / one[step] - 1) for curve in curves.values()) for step in range(len(one))]


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """The losses of the runs in one order on top of each other; below, how far runs are from that of one
    worker.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "diffbfr"
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    steps = range(1, CONFIG.num_steps + 1)
    for (name, curve), style in zip(next(iter(found.values())).items(), ("-", "--", "-.", ":"), strict=True):
        above.plot(steps, curve, style, label=name)
    for name, curves in found.items():
        below.plot(steps, differences(curves), label=name)
    below.set_yscale("symlog", linthresh=1e-8)
    below.set(ylim=(-1e-9, 1e-2), xlabel="step", ylabel="relative difference")
    above.set(ylabel="loss")
    above.legend()
    below.legend()
    figure.savefig(path, metadata={"Date": None})


def _shards(folder: Path) -> str:
    """Procedural faces of the smoke recipe as shards; returns their folder."""
    from pipelines.steps.shard import finish_dataset, plan_shards, shard

    data, place = replace(smoke().data, faces="synthetic:count=96,seed=7,px=128"), str(folder / "shards")
    tasks = plan_shards(open_source(data.faces), data.shard_config, place)
    for task in tasks:
        shard(task)
    finish_dataset(place, tasks)
    return place


def main(words: list[str]) -> None:
    """Run as a driver, or as one of its ranks."""
    if words[0] == "--rank":
        train_rank(words[1], words[2], int(words[3]), int(words[4]) or None)
        return
    folder, target = Path(words[0]), Path(words[1])
    data = _shards(folder)
    found = {name: measure(folder / f"parts-{parts}", data, parts) for name, parts in PARTS.items()}
    largest = {name: max(differences(curves)) for name, curves in found.items()}
    draw(found, target.with_suffix(".svg"))
    target.with_suffix(".json").write_text(
        json.dumps({"largest_relative_difference": largest, "losses": found}, indent=1) + "\n"
    )
    sys.stderr.write(
        f"largest relative difference from one worker over {CONFIG.num_steps} steps: {largest}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
