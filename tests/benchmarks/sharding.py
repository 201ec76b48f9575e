"""Photos to shards, through the cluster: processor time a photo, what is spent beside the work itself, memory, and a second run.

    python -m tests.benchmarks.sharding [PHOTOS] [--workers 1 2] [--hq-px 512] [--lq-px 128] [--count 48] [--shard-size 12]

PHOTOS is a folder, zip or tar; without it, PNGs of 1024 px are made. Each number of workers makes a dataset of its own; equal content_ids
say that they are the same. 0 workers are this process. Efficiency is of clock time and wants cores with nothing else to do; all else is
processor time, which busy cores stretch less. A worker is one process that reads, packs and commits, and one that decodes and degrades.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow.parquet  # noqa: F401 - what every run imports once is no part of a photo

from diffbfr.degradation import PRESETS
from diffbfr.images import encode_png
from diffbfr.shards import DatasetInfo
from diffbfr.synthetic import render_face
from pipelines.apart import run_apart
from pipelines.cli.output import table
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.sources import open_source
from pipelines.steps.samples import ShardConfig, make_face
from pipelines.steps.shard import ShardReport, ShardTask, finish_dataset, plan_shards, shard
from tests.benchmarks.photos import make_photos
from tests.benchmarks.processes import peak_mb, tree_seconds

_WARM_UP_S: Final = 5.0


@dataclass(frozen=True)
class Measured:
    """One task: its report, the processor time of the worker and of the process that decodes for it, and the peak memory of both (MB)."""

    report: ShardReport
    worker_s: float
    decoding_s: float
    peaks_mb: tuple[float, ...]


@dataclass(frozen=True)
class Making:
    """One dataset that was made, and made again."""

    num_workers: int
    info: DatasetInfo
    tasks: tuple[Measured, ...]
    elapsed_s: float
    driving_s: float
    """Processor time of the driver: listing, plans, tables."""
    ray_s: float
    """Processor time of Ray's own processes, which wait at some 2 % of a core as long as it takes by the clock."""
    again_s: float
    again_made: int
    """Shards that the second run did not find."""

    @property
    def num_photos(self) -> int:
        """Inputs: each was committed or quarantined."""
        return self.info.num_samples + self.info.num_quarantined

    @property
    def working_s(self) -> float:
        """Processor time of all workers."""
        return sum(task.worker_s + task.decoding_s for task in self.tasks)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hq-px", type=int, default=512)
    parser.add_argument("--lq-px", type=int, default=128)
    parser.add_argument("--count", type=int, default=48, help="photos to make where none are given")
    parser.add_argument("--shard-size", type=int, default=12)
    words = parser.parse_args()
    config = ShardConfig(words.hq_px, words.lq_px, 2, words.shard_size, 0.05, 0.05, 0, PRESETS["paper"])
    with tempfile.TemporaryDirectory() as folder:
        photos = words.photos or str(make_photos(Path(folder) / "photos", words.count))
        makings = [make(photos, config, f"{folder}/data-{number}", number) for number in words.workers]
    print(table(("what", *(f"{making.num_workers} workers" for making in makings)), rows(makings)))


def make(photos: str, config: ShardConfig, root: str, num_workers: int) -> Making:
    """Make a dataset with so many workers, then run the same again."""
    with Cluster(ClusterConfig(num_workers=num_workers)) as cluster:
        cluster.map(partial(_warm_up, config), list(range(max(1, num_workers))), label="warm up")
        before, own, started = tree_seconds(os.getpid()), time.process_time(), time.monotonic()
        tasks = plan_shards(open_source(photos), config, root)
        done = cluster.map(measured, tasks, label="shard", unit="img", weight=lambda task: task.num_photos)
        info = finish_dataset(root, tasks)
        elapsed, own, spent = time.monotonic() - started, time.process_time() - own, tree_seconds(os.getpid()) - before
    again = time.monotonic()
    found = [shard(task) for task in plan_shards(open_source(photos), config, root)]
    again_s = time.monotonic() - again
    working = sum(task.worker_s + task.decoding_s for task in done)
    driving = own - (sum(task.worker_s for task in done) if num_workers == 0 else 0.0)
    made_again = sum(not report.skipped for report in found)
    return Making(num_workers, info, tuple(done), elapsed, driving, spent - working - driving, again_s, made_again)


def measured(task: ShardTask) -> Measured:
    """Make one shard, and say what it cost."""
    own, everything = time.process_time(), tree_seconds(os.getpid())
    report = shard(task)
    own, everything = time.process_time() - own, tree_seconds(os.getpid()) - everything
    return Measured(report, own, everything - own, tuple(peak_mb(os.getpid()).values()))


def rows(makings: Sequence[Making]) -> list[tuple[str, ...]]:
    """The figures, a row each."""
    first = makings[0]
    speed = first.num_photos / first.elapsed_s / max(1, first.num_workers)
    described = {
        "photos": [f"{making.num_photos}" for making in makings],
        "committed + quarantined": [f"{making.info.num_samples} + {making.info.num_quarantined}" for making in makings],
        "ms a photo": [f"{1000 * making.working_s / making.num_photos:.1f}" for making in makings],
        "img/s/core": [f"{making.num_photos / making.working_s:.1f}" for making in makings],
        "reading, packing, committing": [_share(sum(task.worker_s for task in making.tasks), making.working_s) for making in makings],
        "driver": [_share(making.driving_s, making.working_s) for making in makings],
        "Ray's own processes": [_share(making.ray_s, making.working_s) for making in makings],
        "peak of a worker, MB": [f"{max(task.peaks_mb[0] for task in making.tasks):.0f}" for making in makings],
        "peak of its decoder, MB": [f"{max(max(task.peaks_mb[1:], default=0) for task in making.tasks):.0f}" for making in makings],
        "img/s by the clock": [f"{making.num_photos / making.elapsed_s:.1f}" for making in makings],
        "efficiency": [f"{making.num_photos / making.elapsed_s / max(1, making.num_workers) / speed:.0%}" for making in makings],
        "again, s": [f"{making.again_s:.2f}" for making in makings],
        "shards made again": [f"{making.again_made}" for making in makings],
        "content_id": [making.info.content_id[:16] for making in makings],
    }
    return [(name, *values) for name, values in described.items()]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def _warm_up(config: ShardConfig, number: int) -> int:
    """Start in a worker what a shard needs, and keep it until the others have done the same."""
    run_apart(make_face, config, "warm", "warm.png", encode_png(render_face(number, config.hq_px).pixels))
    time.sleep(_WARM_UP_S)
    return number


if __name__ == "__main__":
    main()
