"""How fast photos become shards and shards become samples, in processor time, which busy cores stretch less than a clock's.

    python -m tests.benchmarks.data [NUM_PHOTOS]

Photos are PNGs of 1024 px with the grain of a camera, about 1.5 MB each; faces are 512 px with two variants.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"}  # before the first import: a rate for one core

import numpy as np
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.images import decode, lq_to_model
from diffbfr.shards import ShardedDataset
from pipelines.cli.output import table
from pipelines.manifest import open_dataset
from pipelines.sources import open_source
from pipelines.steps.samples import ShardConfig, make_face
from pipelines.steps.shard import finish_dataset, plan_shards, shard

CONFIG = ShardConfig(512, 128, 2, 250, 0.0, 0.0, 0, PRESETS["paper"])
ROUNDS = 3


def main(num_photos: int) -> None:
    """Print a table of figures."""
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos", num_photos)
        rows = [*bench_shards(photos, Path(folder) / "data"), *bench_loader(open_dataset(Path(folder) / "data"))]
    print(table(("what", "figure", "unit"), rows))


def make_photos(folder: Path, count: int) -> Path:
    """Smooth random pictures with grain."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).resize((1024, 1024), Image.Resampling.BICUBIC)
        grain = rng.integers(-1, 2, (1024, 1024, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(folder / f"{number:05d}.png", compress_level=4)
    return folder


def bench_shards(photos: Path, root: Path) -> Iterator[tuple[str, str, str]]:
    """One core's rate, and what a worker spends beside the work itself."""
    datas = [path.read_bytes() for path in sorted(photos.glob("*.png"))]
    make_face(CONFIG, "warm", "warm.png", datas[0])
    work = seconds(lambda: [make_face(CONFIG, "key", "x.png", data) for data in datas])
    yield "one face, in this process", f"{1000 * work / len(datas):.1f}", "ms"
    yield "sharding", f"{len(datas) / work:.1f}", "img/s/core"
    (task,) = plan_shards(open_source(photos), CONFIG, str(root))
    started = time.process_time()
    shard(task)
    beside = time.process_time() - started
    finish_dataset(str(root), [task])
    yield "reading, packing, committing beside the work", f"{100 * beside / (beside + work):.1f}", "%"
    yield "peak memory of this process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f}", "MB"
    started = time.monotonic()
    assert shard(plan_shards(open_source(photos), CONFIG, str(root))[0]).skipped
    yield "again, with all there", f"{time.monotonic() - started:.2f}", "s"


def bench_loader(dataset: ShardedDataset) -> Iterator[tuple[str, str, str]]:
    """Pairs and ground truths by key, and webdataset's own pipeline with the same decoder on the same tars."""
    import webdataset as wds

    keys, root = dataset.keys("train"), Path(dataset.root)

    def ours_low() -> None:
        for key in keys:
            lq_to_model(dataset.lq(key, 0), 128)
            dataset.hq_low(key, 0)

    def theirs_low() -> None:
        columns = (wds.WebDataset(str(root / column / "000000.tar"), shardshuffle=False) for column in ("lq", "hq128"))
        for lq, target in zip(*columns, strict=True):
            lq_to_model(decode(lq["0.jpg"]).pixels, 128)
            decode(target["png"])

    def ours_high() -> None:
        for key in keys:
            decode(dataset.read(key, "hq512", "webp"))

    def theirs_high() -> None:
        for sample in wds.WebDataset(str(root / "hq512" / "000000.tar"), shardshuffle=False):
            decode(sample["webp"])

    for name, ours, theirs in (("LQ + hq128", ours_low, theirs_low), ("hq512", ours_high, theirs_high)):
        ours()
        theirs()
        times = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
        mine, other = min(pair[0] for pair in times), min(pair[1] for pair in times)
        yield f"{name}, by key", f"{len(keys) / mine:.0f}", "samples/s/core"
        yield f"{name}, webdataset", f"{len(keys) / other:.0f}", "samples/s/core"
        yield f"{name}, ratio", f"{other / mine:.2f}", "x"


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a piece of work."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
