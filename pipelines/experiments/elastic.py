"""Study: the losses of one training on 1, 2 and 4 workers, and on 2, 1, 2 workers in turn, step by step.

    python -m pipelines.experiments.elastic build/elastic docs/figures/elastic

It takes minutes on two cores. IRM-1's small network with Table 6's dropout is trained on procedural faces;
every worker is a process of torchrun with one thread. All runs are done with `training.reduce_leaves=4`,
which fixes the order of every sum, and without. The first folder keeps the data and the trainings; the second
argument is extended by .svg and .json.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffbfr.stages import IRM1, IRM1_TINY
from diffbfr.training.config import TrainingConfig
from pipelines.recipes.presets import smoke
from pipelines.sources import open_source

STAGE = replace(IRM1_TINY, unet=replace(IRM1_TINY.unet, dropout=IRM1.unet.dropout))
CONFIG = TrainingConfig(
    num_samples=480, global_batch=8, learning_rate=1e-3, checkpoint_samples=80, max_gradient_norm=1.0
)
REDUCE_LEAVES = {"parts of the batch added in one order": 4, "in any order": None}
LOSSES = "losses.jsonl"
RUNS = {
    "1 worker": [(1, 60)],
    "2 workers": [(2, 60)],
    "4 workers": [(4, 60)],
    "2, 1, 2 workers": [(2, 24), (1, 46), (2, 60)],
}
"""Number of workers, and the step after which they are stopped; the next ones resume from a checkpoint."""


class StoppedError(Exception):
    """Ends a rank as if its machine were lost."""


def train_rank(folder: str, data: str, until: int, reduce_leaves: int | None) -> None:
    """Train one rank, started by torchrun, until a step; rank 0 writes every loss."""
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
            raise StoppedError

    try:
        train(
            Run(STAGE, replace(CONFIG, reduce_leaves=reduce_leaves), open_dataset(data), Path(folder)),
            report,
            heartbeat=heartbeat,
            report_every_s=0,
        )
    except StoppedError:
        pass
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def measure(folder: Path, data: str, reduce_leaves: int | None) -> dict[str, list[float]]:
    """Losses of each run, step by step; the last value of a step that was repeated."""
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
                [sys.executable, *command, "--rank", str(place), data, str(until), str(reduce_leaves or 0)],
                check=True,
            )
        steps: dict[int, float] = dict(json.loads(line) for line in (place / LOSSES).read_text().splitlines())
        curves[name] = [steps[step] for step in range(1, CONFIG.num_steps + 1)]
    return curves


def differences(curves: dict[str, list[float]]) -> list[float]:
    """The largest relative difference of a run from the run on one worker, at each step."""
    one = np.array(curves["1 worker"])
    ratios = [np.array(curve) / one for curve in curves.values()]
    largest: list[float] = np.abs(np.stack(ratios) - 1).max(axis=0).tolist()
    return largest


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw the losses of the runs with a fixed order of sums, and below the differences from one worker."""
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
    """Make shards of the smoke recipe's procedural faces and return their folder."""
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
    found = {
        name: measure(folder / f"leaves-{leaves}", data, leaves) for name, leaves in REDUCE_LEAVES.items()
    }
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
