"""How fast shards become samples, in processor time: the loader of trainings, and webdataset's own pipeline
on the same tars.

    python -m tests.benchmarks.loading [DATASET] [--count 64] [--rounds 7]

DATASET is a finished dataset of 128 -> 512 px; without it, photos are made and sharded first. Arms run one
after another, in rounds whose order turns. A ratio is webdataset's median time over an arm's with its 95 %
interval over rounds: above 1, the arm is faster. webdataset reads in the order of the tars and decodes with
its own `rgb8`; ours reads in the order of a run and checks each digest. `training` is all that a training
waits for: it adds flips, draws t and noise for each position (786,432 normals at 512 px, which torch's
generator makes in 1.9 ms), and makes the tensors of a batch. Freed memory is kept, as in a training on a CPU.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

os.environ |= {
    "OPENCV_FOR_THREADS_NUM": "1",
    "OMP_NUM_THREADS": "1",
}  # before the first import: a rate for one core

import torch

from diffbfr.cost.malloc import tune_malloc
from diffbfr.degradation import PRESETS
from diffbfr.images import Pixels, decode_trusted, lq_to_model
from diffbfr.shards import SampleLoader, ShardedDataset
from diffbfr.stages import IRM1, TEM, StageSpec
from diffbfr.training.batches import PositionLoader
from diffbfr.training.config import TrainingConfig
from pipelines.cli.output import table
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.samples import ShardConfig
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard
from tests.benchmarks.harness import ratio
from tests.benchmarks.photos import make_photos

Arm = Callable[[], int]
"""Reads some epochs; returns how many samples that was."""

_EPOCHS: Final = 4
_BATCH: Final = 8


def main() -> None:
    """Print a table for each kind of sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--count", type=int, default=64, help="photos to make where no dataset is given")
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    torch.set_num_threads(1)
    tune_malloc()
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(words.dataset or _make_dataset(Path(folder), words.count))
        print(
            table(
                ("LQ + hq128, IRM-1", "samples/s/core", "over webdataset"), rows(pairs(dataset), words.rounds)
            )
        )
        print(table(("hq512, TEM", "samples/s/core", "over webdataset"), rows(truths(dataset), words.rounds)))


def pairs(dataset: ShardedDataset) -> Mapping[str, Arm]:
    """The pair of Eq. 8: x_0 at the model's size, and x'_0 as it is stored."""

    def read(key: str, position: int) -> object:
        return lq_to_model(dataset.lq(key, 0), 128), decode_trusted(dataset.read(key, "hq128", "png"))

    def theirs() -> int:
        columns = zip(_tars(dataset, "lq", "0.jpg"), _tars(dataset, "hq128", "png"), strict=True)
        return sum(1 for lq, target in columns if (lq_to_model(lq, 128), target))

    return _arms(dataset, read, IRM1) | {"webdataset": theirs}


def truths(dataset: ShardedDataset) -> Mapping[str, Arm]:
    """The ground truth alone, which TEM learns from (Eq. 11), as it is stored."""

    def read(key: str, position: int) -> object:
        return decode_trusted(dataset.read(key, "hq512", dataset.hq_name))

    def theirs() -> int:
        return sum(1 for _ in _tars(dataset, "hq512", dataset.hq_name))

    return _arms(dataset, read, TEM) | {"webdataset": theirs}


def rows(arms: Mapping[str, Arm], rounds: int) -> list[tuple[str, str, str]]:
    """Rate of each arm in its fastest round, for neighbours on the machine only slow it down, and the
    ratio to webdataset's.
    """
    seconds, counts = measure(arms, rounds)
    theirs = seconds["webdataset"]
    return [
        (name, f"{counts[name] / min(times):.0f}", str(ratio(theirs, times)))
        for name, times in seconds.items()
    ]


def measure(arms: Mapping[str, Arm], rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Processor seconds of each arm in each round, all threads, in an order that turns by one a round; and
    its samples.
    """
    names, seconds = list(arms), {name: list[float]() for name in arms}
    counts = {name: arms[name]() for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - started)
    return seconds, counts


def _arms(dataset: ShardedDataset, read: Callable[[str, int], object], stage: StageSpec) -> dict[str, Arm]:
    return {
        "loader": _epochs(dataset, read, 0),
        "loader, 2 readers": _epochs(dataset, read, 2),
        "training": _training(dataset, stage),
    }


def _epochs(dataset: ShardedDataset, read: Callable[[str, int], object], readers: int) -> Arm:
    def arm() -> int:
        batches = iter(SampleLoader(dataset, "train", read, seed=0, batch=_BATCH, readers=readers))
        num_samples = sum(
            len(share) for share in islice(batches, _EPOCHS * len(dataset.keys("train")) // _BATCH)
        )
        batches.close()
        return num_samples

    return arm


def _training(dataset: ShardedDataset, stage: StageSpec) -> Arm:
    config = TrainingConfig(num_samples=1, global_batch=_BATCH, learning_rate=1e-4)

    def arm() -> int:
        batches = PositionLoader(dataset, stage, config, None).batches()
        num_samples = sum(
            len(batch.t) for batch in islice(batches, _EPOCHS * len(dataset.keys("train")) // _BATCH)
        )
        batches.close()
        return num_samples

    return arm


def _tars(dataset: ShardedDataset, column: str, name: str) -> Iterator[Pixels]:
    """One member of every sample of a column, uint8 h w 3, as webdataset gives it."""
    import webdataset as wds

    tars = sorted(str(path) for path in (Path(dataset.root) / column).glob("*.tar"))
    for _ in range(_EPOCHS):
        yield from (
            sample[name] for sample in wds.WebDataset(tars, shardshuffle=False).decode("rgb8", only=[name])
        )


def _make_dataset(folder: Path, count: int) -> str:
    config, root = ShardConfig(512, 128, 2, 250, 0.0, 0.0, 0, PRESETS["paper"]), str(folder / "data")
    tasks = plan_shards(open_source(make_photos(folder / "photos", count)), config, root)
    for task in tasks:
        shard(task)
    finish_dataset(root, tasks)
    return root


if __name__ == "__main__":
    main()
