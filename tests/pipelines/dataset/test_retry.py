"""What was quarantined can be tried again, and nothing else is read for it."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from diffbfr.errors import QuarantineError, UsageError
from diffbfr.shards import ColumnInfo
from pipelines.dataset.columns import finish_column, write_column_shard
from pipelines.dataset.manifest import open_dataset, read_quarantine
from pipelines.dataset.retry import begin_retry, find_latest_dataset
from pipelines.sources import FolderSource, PhotoRef, open_source
from pipelines.sources.sandbox import run_sandboxed
from pipelines.steps.shard import finish_dataset, plan_shards, shard
from tests.pipelines import poison
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos, picture


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are read."""
    names: list[str] = []
    original = FolderSource.read

    def note(self: FolderSource, ref: PhotoRef) -> bytes:
        names.append(ref.name)
        return original(self, ref)

    monkeypatch.setattr(FolderSource, "read", note)
    return names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve good photos and two that crash a decoder with a bug."""
    folder = make_photos(tmp_path / "photos")
    for number in (2, 11):
        (folder / f"{number:05d}p.png").write_bytes(picture(60 + number) + poison.MARKS["crash"])
    return folder


@pytest.mark.slow
def test_only_what_was_quarantined_is_tried_again_and_the_dataset_is_as_if_it_had_never_failed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    build(photos, tmp_path / "never")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.steps.shard.make_face", poison.make_face)
        assert build(photos, tmp_path / "data").num_quarantined == 2
    read.clear()
    assert begin_retry(str(tmp_path / "data")) == (2, 2)
    assert not (tmp_path / "data" / "dataset.json").exists()
    info = build(photos, tmp_path / "data")
    assert read == ["00002p.png", "00011p.png"]
    assert (info.num_samples, info.num_quarantined) == (14, 0)
    assert _files(tmp_path / "data") == _files(tmp_path / "never")
    assert begin_retry(str(tmp_path / "data")) == (0, 0)
    assert open_dataset(tmp_path / "data").info == info


@pytest.mark.slow
def test_what_still_fails_is_quarantined_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr("pipelines.steps.shard.make_face", poison.make_face)
    build(photos, tmp_path / "data")
    before = _files(tmp_path / "data")
    read.clear()
    begin_retry(str(tmp_path / "data"))
    build(photos, tmp_path / "data")
    assert read == ["00002p.png", "00011p.png"]
    assert _files(tmp_path / "data") == before


@pytest.mark.slow
def test_a_dataset_that_was_never_finished_can_be_retried(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.steps.shard.make_face", poison.make_face)
        for _ in range(2):
            with pytest.raises(
                QuarantineError, match=r"2 of 14 photos were refused, 2 of them as crashed.*data retry"
            ):
                build(photos, tmp_path / "data", max_bad=0)
    with pytest.raises(QuarantineError):
        build(photos, tmp_path / "data", max_bad=0)
    begin_retry(str(tmp_path / "data"))
    assert build(photos, tmp_path / "data", max_bad=0).num_samples == 14


def test_the_dataset_of_a_root_that_was_worked_at_last_is_found_finished_or_not(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    assert find_latest_dataset(root) is None
    photos = make_photos(tmp_path / "photos", 2)
    (photos / "broken.png").write_bytes(b"no picture")
    first, second = (f"{root}/artifacts/shard/{name}" for name in ("b", "a"))
    build(photos, first)
    assert find_latest_dataset(root) == first == find_latest_dataset(first)
    time.sleep(0.01)
    plan_shards(open_source(photos), CONFIG, second)
    assert find_latest_dataset(root) == second
    time.sleep(0.01)
    with pytest.raises(QuarantineError):
        build(photos, first, max_bad=0)
    assert find_latest_dataset(root) == first


def test_what_changed_or_was_damaged_meanwhile_is_made_from_its_photos(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.steps.shard.make_face", poison.make_face)
        build(photos, tmp_path / "data")
    begin_retry(str(tmp_path / "data"))
    tar = tmp_path / "data" / "hq32" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    (photos / "00010" / "late.png").parent.mkdir()
    (photos / "00010" / "late.png").write_bytes(picture(80))
    read.clear()
    tasks = plan_shards(open_source(photos), CONFIG, str(tmp_path / "data"))
    shard(tasks[0])
    assert read == ["00000/00000.png", "00002p.png"]
    (tmp_path / "data" / "commits" / "000001.json").unlink()
    read.clear()
    shard(tasks[1])
    shard(tasks[2])
    assert read == [ref.name for task in tasks[1:] for _, ref in task.photos()]
    assert finish_dataset(str(tmp_path / "data"), tasks).num_samples == 15


def test_a_dataset_that_a_model_has_learnt_from_is_not_retried(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.steps.shard.make_face", poison.make_face)
        build(photos, root)
    for index, keys in enumerate(open_dataset(root).shards):
        write_column_shard(
            str(root), "irm1-abc", index, f"task-{index}", [(key, "0.png", b"x") for key in keys]
        )
    finish_column(
        str(root), ColumnInfo("irm1-abc", ("0.png",), "m" * 64), [f"task-{index}" for index in range(3)]
    )
    before = _files(root)
    with pytest.raises(UsageError, match="has the column irm1-abc of a model"):
        begin_retry(str(root))
    assert _files(root) == before


@pytest.mark.slow
def test_poison_costs_itself_only_and_the_others_are_the_same_to_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos")
    build(photos, tmp_path / "without")
    expected = {sample.key: sample for sample in open_dataset(tmp_path / "without").samples}
    for number, (how, mark) in enumerate(poison.MARKS.items()):
        if how != "error":
            (photos / f"{number:05d}p-{how}.png").write_bytes(picture(90 + number) + mark)
    monkeypatch.setattr("pipelines.steps.shard.make_face", poison.make_face)
    monkeypatch.setattr(
        "pipelines.steps.shard.run_sandboxed", partial(run_sandboxed, seconds=5, num_bytes=1 << 29)
    )
    info = build(photos, tmp_path / "with", replace(CONFIG, shard_size=9))
    found = {row.source: (row.stage, row.reason) for row in read_quarantine(tmp_path / "with")}
    assert found == {
        "00000p-crash.png": ("decode", "crashed"),
        "00001p-abort.png": ("decode", "crashed"),
        "00002p-endless.png": ("decode", "timed_out"),
        "00003p-hog.png": ("decode", "out_of_memory"),
        "00004p-exit.png": ("decode", "crashed"),
        "00005p-raise.png": ("decode", "crashed"),
    }
    assert info.num_samples + info.num_quarantined == 18
    dataset, other = open_dataset(tmp_path / "with"), open_dataset(tmp_path / "without")
    assert info.content_id == other.info.content_id
    assert {sample.key: sample for sample in dataset.samples} == expected
    for key in expected:
        for column in other.columns:
            for name in column.names:
                assert dataset.read(key, column.column, name) == other.read(key, column.column, name)
