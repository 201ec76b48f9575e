"""Sharding with degradation, digests and commits beside img2dataset's resize alone, on the same photos, in
processor time.

    python -m venv /tmp/img2dataset && /tmp/img2dataset/bin/pip install img2dataset==1.47.0
    python -m tests.benchmarks.resizing /tmp/img2dataset/bin/img2dataset [--count 48] [--rounds 3]

Photos are PNGs of 1024 px, outputs 512 px; img2dataset reads them by file:// with one process, and ours with
one worker. Each side runs on a few of the photos and on all of them, and a photo's time is the difference by
the number of photos between, so that starting counts for neither. Ours writes lossless WebP, PNG of 128 px,
two degraded JPEGs and three tars with their commit; img2dataset one picture, in the format named: lossless
WebP is what ours keeps, JPEG of quality 95 is its default. A ratio above 1 says that ours is faster.
"""

import argparse
import os
import resource
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

os.environ |= {
    "OPENCV_FOR_THREADS_NUM": "1",
    "OMP_NUM_THREADS": "1",
}  # before the first import: a rate for one core

from diffbfr.degradation import PRESETS
from pipelines.cli.output import table
from pipelines.dataset.samples import ShardConfig
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset, plan_shards, shard
from tests.benchmarks.photos import make_photos
from tests.benchmarks.processes import tree_seconds

FORMATS: Final = {"lossless WebP": ("webp", 101), "PNG": ("png", 4), "JPEG 95": ("jpg", 95)}
CONFIG: Final = ShardConfig(512, 128, 2, 250, 0.0, 0.0, 0, PRESETS["paper"])

Arm = Callable[[Path, Path], float]
"""(photos, a new folder) -> processor seconds."""


def main() -> None:
    """Print milliseconds a photo of each arm and the ratio of each to ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("img2dataset", help="the program")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    arms: dict[str, Arm] = {"ours": ours}
    arms |= {f"img2dataset, {name}": _theirs(words.img2dataset, *how) for name, how in FORMATS.items()}
    with tempfile.TemporaryDirectory() as folder:
        times = measure(arms, Path(folder), words.few, words.count, words.rounds)
    print(table(("one photo", "ms", "over ours"), rows(times)))


def measure(
    arms: Mapping[str, Arm], folder: Path, few: int, count: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds a photo of each arm in each round, in an order that turns by one a round."""
    photos = make_photos(folder / "photos", count)
    start = folder / "few"
    start.mkdir()
    for path in sorted(photos.iterdir())[:few]:
        (start / path.name).symlink_to(path)
    names, times = list(arms), {name: list[float]() for name in arms}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent = []
            for chosen in (start, photos):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    spent.append(arms[name](chosen, Path(place)))
            times[name].append(1000 * (spent[1] - spent[0]) / (count - few))
    return times


def rows(times: Mapping[str, Sequence[float]]) -> list[tuple[str, str, str]]:
    """Median over rounds of each arm, and the median over rounds of its ratio to ours."""
    return [
        (
            name,
            f"{statistics.median(each):.1f}",
            f"{statistics.median(a / b for a, b in zip(each, times['ours'], strict=True)):.2f}",
        )
        for name, each in times.items()
    ]


def ours(photos: Path, folder: Path) -> float:
    """Processor time of a whole dataset: this process and the one that decodes."""
    before = tree_seconds(os.getpid())
    tasks = plan_shards(open_source(photos), CONFIG, str(folder / "data"))
    for task in tasks:
        shard(task)
    info = finish_dataset(str(folder / "data"), tasks)
    _check(info.num_samples, photos)
    return tree_seconds(os.getpid()) - before


def _theirs(program: str, encode_format: str, quality: int) -> Arm:
    def arm(photos: Path, folder: Path) -> float:
        (folder / "urls.txt").write_text(
            "\n".join(path.resolve().as_uri() for path in sorted(photos.iterdir()))
        )
        options = {
            "url_list": folder / "urls.txt",
            "output_folder": folder / "out",
            "output_format": "webdataset",
            "image_size": CONFIG.hq_px,
            "resize_mode": "center_crop",
            "encode_format": encode_format,
            "encode_quality": quality,
            "processes_count": 1,
            "thread_count": 2,
            "number_sample_per_shard": CONFIG.shard_size,
        }
        before = _of_children()
        subprocess.run(
            [program, *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
            check=True,
            capture_output=True,
        )
        spent = _of_children() - before
        with tarfile.open(folder / "out" / "00000.tar") as tar:
            _check(sum(member.name.endswith(encode_format) for member in tar), photos)
        return spent

    return arm


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _check(made: int, photos: Path) -> None:
    wanted = len(list(photos.iterdir()))
    if made != wanted:
        raise RuntimeError(f"{made} of {wanted} photos came out; expected all; the times would say nothing")


if __name__ == "__main__":
    main()
