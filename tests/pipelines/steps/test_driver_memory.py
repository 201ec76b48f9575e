"""What the driver holds does not grow with the photos: ten times as many take it no more."""

import io
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.degradation import DegradationParams
from diffbfr.shards import Member, Sample
from pipelines import storage
from pipelines.dataset.commits import Commit, Quarantined, TarInfo, publish
from pipelines.dataset.manifest import SAMPLES, read_quarantine, stream_rows
from pipelines.dataset.shard_plan import COMMITS, ShardTask, split_listing
from pipelines.dataset.verify_records import verify_records
from pipelines.sources import open_source
from pipelines.steps.shard import finish_dataset
from tests.pipelines.tiny_dataset import CONFIG

FEW, MANY, SHARD = 1_000, 10_000, 100
SLACK = 1 << 18
TAR_BYTES = 10_240
PARAMS = DegradationParams(sigma=0.5, r=2.0, delta=3.0, q=70, gray=False, flip=False, noise_seed=1)


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that Python held for this work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _pack(kind: str, place: Path, count: int) -> Path:
    """Photos without content: only their names are listed."""
    names = (f"face {number:05d} of a flat folder.png" for number in range(count))
    if kind == "folder":
        place.mkdir()
        for name in names:
            (place / name).touch()
    elif kind == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), b"")
    else:
        with tarfile.open(place, "w") as packed:
            for name in names:
                packed.addfile(tarfile.TarInfo(name), io.BytesIO())
                packed.members.clear()
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_listing_takes_no_more_memory_for_more_photos(tmp_path: Path, kind: str) -> None:
    peaks = []
    for count in (FEW, MANY):
        place = _pack(kind, tmp_path / f"{count}.{kind}", count)
        peaks.append(
            _peak(
                lambda place=place: sum(
                    len(photos) for photos in split_listing(open_source(place).refs(), SHARD)
                )
            )
        )
    if kind == "folder":
        shutil.rmtree(tmp_path)
    assert peaks[1] < 1.2 * peaks[0] + SLACK, f"{kind}: peaks of {peaks} bytes"


def _committed(root: Path, num_shards: int) -> list[ShardTask]:
    """Shards as if they had been made, of samples without files; every fifth photo was refused."""
    template = Sample("", "train", "a.png", 9, "0" * 64, 40, 40, "1" * 64, "2" * 64, (PARAMS,))
    config = replace(CONFIG, variants=1)
    tasks = [
        ShardTask(index, SHARD, f"task {index}", open_source("synthetic:"), str(root), config)
        for index in range(num_shards)
    ]
    for task in tasks:
        keys = [f"{task.index:03d}-{number:04d}" for number in range(SHARD)]
        kept = [key for number, key in enumerate(keys) if number % 5]
        refused = tuple(
            Quarantined(f"{key}.png", 9, "3" * 64, "decode", "cut", f"{key}.png ends early")
            for key in keys[::5]
        )
        tars = []
        for column in config.columns:
            tar = f"{column.column}/{task.index:06d}.tar"
            members = tuple(
                Member(key, name, column.column, tar, 512, 9, "4" * 64)
                for key in kept
                for name in column.names
            )
            tars.append(TarInfo(tar, TAR_BYTES, "5" * 64, members))
            storage.write_atomic(root / tar, bytes(TAR_BYTES))
        samples = tuple(replace(template, key=key, source=f"{key}.png") for key in kept)
        publish(str(root), COMMITS, Commit(task.index, task.digest, samples, tuple(tars), refused), [])
    return tasks


@pytest.mark.slow
def test_finishing_and_verifying_take_no_more_memory_for_more_shards(tmp_path: Path) -> None:
    finishes, checks, found = [], [], []
    for num_shards in (6, 24):
        root = tmp_path / str(num_shards)
        tasks = _committed(root, num_shards)
        finishes.append(_peak(lambda root=root, tasks=tasks: finish_dataset(str(root), tasks)))
        checks.append(_peak(lambda root=root: found.extend(verify_records(str(root)))))
        assert len(read_quarantine(root)) == num_shards * SHARD // 5
        assert sum(1 for _ in stream_rows(str(root / SAMPLES), Sample)) == num_shards * SHARD * 4 // 5
    assert found == []
    assert finishes[1] < 1.2 * finishes[0] + SLACK, f"finishing: peaks of {finishes} bytes"
    assert checks[1] < 1.2 * checks[0] + SLACK, f"verifying: peaks of {checks} bytes"
