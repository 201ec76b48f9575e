"""Photos to shards, through the cluster: processor time a photo, what is spent beside the work itself,
memory, and a second run.

    python -m tests.benchmarks.sharding [PHOTOS] [--workers 1 2] [--count 160] [--few 40] [--shard-size 20]
    [--command RECIPE]

PHOTOS is a folder, zip or tar; without it, PNGs of 1024 px are made. Each number of workers makes a dataset
of its own; equal content_ids say that they are the same. 0 workers are this process. A worker is one process
that reads, packs and commits, and one that decodes and degrades. Times are of the steady state: a dataset of
the first few photos is made before, and its times are taken off.

`orchestration` is all processor time but that of reading, decoding, degrading, encoding and packing: the
driver (listing, plans, tables), Ray's own processes, and what a worker spends to find and publish a shard.
Ray's own processes wait at some percent of a core by the clock, whatever is done. On cores that others use
too, the clock runs on and that share grows; `on cores of its own` is what it would be if a worker had a whole
core. Efficiency is of clock time and wants such cores; all else is processor time.

With --command the real `diffbfr shard --recipe RECIPE` makes the dataset once more and is then run again on
what is finished; its processor time is that of the command and what it waited for, not of a Ray that it
started.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final
from unittest import mock

import pyarrow.parquet  # noqa: F401 - what every run imports once is no part of a photo

from diffbfr.degradation import PRESETS
from diffbfr.images import encode_png
from diffbfr.shards import DatasetInfo
from diffbfr.synthetic import render_face
from pipelines.cli.output import table
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.samples import Face, ShardConfig, make_face
from pipelines.sources import PhotoRef, PhotoSource, open_source
from pipelines.sources.sandbox import run_sandboxed
from pipelines.steps import shard as step
from pipelines.steps.shard import ShardReport, ShardTask, finish_dataset, plan_shards, shard
from tests.benchmarks.photos import make_photos
from tests.benchmarks.processes import peak_mb, tree_seconds

_WARM_UP_S: Final = 5.0


@dataclass(frozen=True)
class First(PhotoSource):
    """The first photos of a listing."""

    uri: str
    inner: PhotoSource
    count: int

    def listing(self) -> Iterator[PhotoRef]:
        """So many of them."""
        yield from islice(self.inner.listing(), self.count)

    def read(self, ref: PhotoRef) -> bytes:
        """As the listing that it is the beginning of."""
        return self.inner.read(ref)


@dataclass(frozen=True)
class Measured:
    """One task: its report, processor time by what it went into, and the peak memory of the worker and of
    its decoder (MB).
    """

    report: ShardReport
    reading_s: float
    """In the worker: photos read and handed over, samples packed."""
    committing_s: float
    """In the worker: all else."""
    decoding_s: float
    """In the process that decodes and degrades."""
    peaks_mb: tuple[float, ...]


@dataclass(frozen=True)
class Spent:
    """What a dataset took: clock time, and processor time by who had it."""

    num_photos: int
    elapsed_s: float
    decoding_s: float
    reading_s: float
    committing_s: float
    driving_s: float
    ray_s: float

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))  # type: ignore[arg-type]

    @property
    def working_s(self) -> float:
        """What the work itself takes."""
        return self.decoding_s + self.reading_s

    @property
    def beside_s(self) -> float:
        """Orchestration."""
        return self.committing_s + self.driving_s + self.ray_s

    def beside_alone(self, num_workers: int) -> float:
        """The share of orchestration if each worker had a core of its own: Ray's processes wait for less
        long, and cost less.
        """
        others = self.committing_s + self.driving_s
        waiting = self.ray_s / self.elapsed_s * (self.working_s + others) / max(1, num_workers)
        return (others + waiting) / (self.working_s + others + waiting)


@dataclass(frozen=True)
class Making:
    """One dataset that was made, and made again."""

    num_workers: int
    info: DatasetInfo
    tasks: tuple[Measured, ...]
    steady: Spent
    starting_s: float
    """Processor time until the workers were ready."""
    again_s: float
    again_made: int
    """Shards that the second run did not find."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hq-px", type=int, default=512)
    parser.add_argument("--lq-px", type=int, default=128)
    parser.add_argument("--count", type=int, default=160, help="photos to make where none are given")
    parser.add_argument("--few", type=int, default=40, help="photos of the dataset whose times are taken off")
    parser.add_argument("--shard-size", type=int, default=20)
    parser.add_argument("--command", metavar="RECIPE", help="run the real command too, and again")
    words = parser.parse_args()
    config = ShardConfig(words.hq_px, words.lq_px, 2, words.shard_size, 0.05, 0.05, 0, PRESETS["paper"])
    with tempfile.TemporaryDirectory() as folder:
        photos = words.photos or str(make_photos(Path(folder) / "photos", words.count))
        makings = [
            make(photos, config, f"{folder}/data-{place}", number, words.few)
            for place, number in enumerate(words.workers)
        ]
        print(table(("what", *(f"{making.num_workers} workers" for making in makings)), rows(makings)))
        if words.command:
            print(
                table(
                    ("diffbfr shard", "", "clock, s", "processor, s"),
                    run_command(words.command, photos, f"{folder}/root"),
                )
            )


def make(photos: str, config: ShardConfig, root: str, num_workers: int, few: int) -> Making:
    """Make a dataset of a few photos and one of all with so many workers, then run the second again."""
    source, before = open_source(photos), tree_seconds(os.getpid())
    with Cluster(ClusterConfig(num_workers=num_workers)) as cluster:
        cluster.map(partial(_warm_up, config), list(range(max(1, num_workers))), label="warm up")
        starting = tree_seconds(os.getpid()) - before
        _spend(cluster, First(photos, source, max(1, num_workers)), config, f"{root}-warm")
        _, _, start = _spend(cluster, First(photos, source, few), config, f"{root}-few")
        info, done, whole = _spend(cluster, source, config, root)
    again = time.monotonic()
    found = [shard(task) for task in plan_shards(source, config, root)]
    again_s = time.monotonic() - again
    return Making(
        num_workers,
        info,
        tuple(done),
        whole - start,
        starting,
        again_s,
        sum(not report.skipped for report in found),
    )


def measured(task: ShardTask) -> Measured:
    """Make one shard, and say what it cost."""
    working, make_members = 0.0, step._make

    def timed(task: ShardTask) -> object:
        nonlocal working
        started = time.process_time()
        made = make_members(task)
        working = time.process_time() - started
        return made

    own, everything = time.process_time(), tree_seconds(os.getpid())
    with mock.patch.object(step, "_make", timed):
        report = shard(task)
    own, everything = time.process_time() - own, tree_seconds(os.getpid()) - everything
    return Measured(
        report, working, own - working, max(0.0, everything - own), tuple(peak_mb(os.getpid()).values())
    )


def rows(makings: Sequence[Making]) -> list[tuple[str, ...]]:
    """The figures, a row each."""
    first = makings[0].steady
    speed = first.num_photos / first.elapsed_s / max(1, makings[0].num_workers)
    columns = []
    for making in makings:
        steady = making.steady
        everything = steady.working_s + steady.beside_s
        per_core = steady.num_photos / steady.elapsed_s / max(1, making.num_workers)
        columns.append(
            {
                "photos": f"{making.info.num_samples + making.info.num_quarantined}",
                "committed + quarantined": f"{making.info.num_samples} + {making.info.num_quarantined}",
                "ms a photo": f"{1000 * everything / steady.num_photos:.1f}",
                "img/s/core": f"{steady.num_photos / everything:.1f}",
                "reading, handing over, packing": f"{steady.reading_s / everything:.1%}",
                "orchestration": f"{steady.beside_s / everything:.1%}",
                "  on cores of its own": f"{steady.beside_alone(making.num_workers):.1%}",
                "  driver": f"{steady.driving_s / everything:.1%}",
                "  Ray's own processes": f"{steady.ray_s / everything:.1%}",
                "  finding and publishing": f"{steady.committing_s / everything:.1%}",
                "  Ray, of a core by the clock": f"{steady.ray_s / steady.elapsed_s:.1%}",
                "start, s of processor time": f"{making.starting_s:.1f}",
                "peak of a worker, MB": f"{max(task.peaks_mb[0] for task in making.tasks):.0f}",
                "peak of its decoder, MB": (
                    f"{max(max(task.peaks_mb[1:], default=0) for task in making.tasks):.0f}"
                ),
                "img/s by the clock": f"{steady.num_photos / steady.elapsed_s:.1f}",
                "efficiency": f"{per_core / speed:.0%}",
                "again, s": f"{making.again_s:.2f}",
                "shards made again": f"{making.again_made}",
                "content_id": making.info.content_id[:16],
            }
        )
    return [(name, *(column[name] for column in columns)) for name in columns[0]]


def run_command(recipe: str, photos: str, root: str) -> list[tuple[str, ...]]:
    """What the command says that it does, at first and again, with its clock and processor time."""
    described = []
    for name in ("first", "again"):
        before, started = tree_seconds(os.getpid()), time.monotonic()
        words = ["shard", "--recipe", recipe, "--faces", photos, "--root", root, "--json"]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *words], check=True, capture_output=True, text=True
        )
        (made,) = json.loads(done.stdout)["steps"]
        elapsed, spent = time.monotonic() - started, tree_seconds(os.getpid()) - before
        described.append((name, f"{made['action']}: {made['reason']}", f"{elapsed:.1f}", f"{spent:.1f}"))
    return described


def _spend(
    cluster: Cluster, source: PhotoSource, config: ShardConfig, root: str
) -> tuple[DatasetInfo, list[Measured], Spent]:
    before, own, started = tree_seconds(os.getpid()), time.process_time(), time.monotonic()
    tasks = plan_shards(source, config, root)
    done = cluster.map(measured, tasks, label="shard", unit="img", weight=lambda task: task.num_photos)
    info = finish_dataset(root, tasks)
    elapsed, own, spent = (
        time.monotonic() - started,
        time.process_time() - own,
        tree_seconds(os.getpid()) - before,
    )
    reading, committing, decoding = (
        sum(getattr(task, name) for task in done) for name in ("reading_s", "committing_s", "decoding_s")
    )
    driving = own - (reading + committing if cluster.config.num_workers == 0 else 0.0)
    ray = max(0.0, spent - reading - committing - decoding - driving)
    return (
        info,
        done,
        Spent(sum(task.num_photos for task in tasks), elapsed, decoding, reading, committing, driving, ray),
    )


def _warm_up(config: ShardConfig, number: int) -> int:
    """Start in a worker what a shard needs, and keep it until the others have done the same."""
    photo = encode_png(render_face(number, config.hq_px).pixels)
    run_sandboxed(make_face, config, "warm", "warm.png", photo, returns=Face)
    time.sleep(_WARM_UP_S)
    return number


_PROGRAM: Final = "from pipelines.cli import main; main()"


if __name__ == "__main__":
    main()
