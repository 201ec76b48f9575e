"""The listing is split into shards by its sorted keys; a dataset of another configuration is not resumed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError
from pipelines.dataset.commits import CommitConflictError
from pipelines.dataset.shard_plan import describe_build, plan_shards, shard_digest, split_listing
from pipelines.sources import PhotoRef, open_source
from tests.pipelines.tiny_dataset import CONFIG, make_photos

ROOT = Path(__file__).parents[3]


def test_photos_are_cut_by_their_sorted_keys(tmp_path: Path) -> None:
    source = open_source(make_photos(tmp_path / "photos"))
    tasks = plan_shards(source, CONFIG, str(tmp_path / "data"))
    assert [(task.index, task.num_photos) for task in tasks] == [(0, 5), (1, 5), (2, 2)]
    photos = [photo for task in tasks for photo in task.photos()]
    assert (
        [key for key, _ in photos]
        == sorted(key for key, _ in photos)
        == [f"{number:05d}" for number in range(12)]
    )
    assert [ref for _, ref in photos] == list(source.refs())
    for task in tasks:
        assert task.digest == shard_digest(CONFIG, task.index, task.photos())


def test_every_field_of_a_photo_comes_back_also_a_path_that_is_no_utf8() -> None:
    refs = [
        PhotoRef("/photos/caf\udce9.png", "caf\\xe9.png", 3, "3-4", "a" * 32, "b" * 32),
        PhotoRef("s3://bucket/été 人😀.png", "été 人😀.png", 2**40, 'etag"', "", ""),
    ]
    assert (
        sorted((ref for part in split_listing(iter(refs), 1) for _, ref in part), key=lambda ref: ref.bytes)
        == refs
    )


def test_a_plan_that_is_not_the_tasks_is_refused_and_a_rerun_mends_it(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    tasks = plan_shards(open_source(photos), CONFIG, str(tmp_path / "data"))
    (photos / "00000" / "00000.png").write_bytes((photos / "00000" / "00001.png").read_bytes())
    again = plan_shards(open_source(photos), CONFIG, str(tmp_path / "data"))
    assert [task.digest == other.digest for task, other in zip(tasks, again, strict=True)] == [
        False,
        True,
        True,
    ]
    with pytest.raises(UsageError, match="was planned for other photos or settings"):
        tasks[0].photos()
    assert again[0].photos()
    plan = tmp_path / "data" / "plan" / "000001.json"
    plan.write_bytes(plan.read_bytes().replace(b"00007", b"00008"))
    with pytest.raises(ShardDamagedError, match="is damaged"):
        again[1].photos()


def test_a_rerun_writes_no_plan_again(tmp_path: Path) -> None:
    source = open_source(make_photos(tmp_path / "photos"))
    plan_shards(source, CONFIG, str(tmp_path / "data"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.json")}
    plan_shards(source, CONFIG, str(tmp_path / "data"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.json")} == before
    assert len(before) == 4


def test_a_dataset_that_was_begun_otherwise_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(make_photos(tmp_path / "photos"))
    plan_shards(source, CONFIG, str(tmp_path / "data"))
    with pytest.raises(
        CommitConflictError, match=r"made from other inputs \(recipe\.variants 2, expected 3\)"
    ):
        plan_shards(source, replace(CONFIG, variants=3), str(tmp_path / "data"))
    monkeypatch.setattr("pipelines.dataset.shard_plan.version", lambda tool: "99")
    with pytest.raises(CommitConflictError, match=r"\(tools\.numpy .*, expected 99\)"):
        plan_shards(source, CONFIG, str(tmp_path / "data"))
    assert (
        list(describe_build(replace(CONFIG, degradation=replace(CONFIG.degradation, before="x")))["tools"])[
            -1
        ]
        == "albumentations"
    )


_MEASURE = """
import sys
from pipelines.sources import PhotoRef
from pipelines.dataset.shard_plan import split_listing
from tests.memory import peak_kib
refs = (PhotoRef(f"s3://bucket/photos/{n:09d}.png", f"{n // 1000:06d}/{n:09d}.png", 1 << 20, f"{n:032x}") for n in range(int(sys.argv[1])))
count = sum(len(part) for part in split_listing(refs, 250))
print(count, peak_kib())
"""


@pytest.mark.slow
def test_the_drivers_memory_does_not_grow_with_the_photos() -> None:
    peaks = {}
    for photos in (2_000, 100_000):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(photos)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        count, peaks[photos] = map(int, done.stdout.split())
        assert count == photos
    assert (
        peaks[100_000] - peaks[2_000] < 20_000
    )  # kB: the spool's cache; held in memory, 98,000 photos would take some 60 MB
