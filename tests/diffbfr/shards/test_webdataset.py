"""A dataset as a webdataset pipeline: every key once over all ranks and workers, joined columns, damage raised."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbfr.errors import UsageError
from diffbfr.images import encode_png
from diffbfr.shards import (
    ColumnInfo,
    ShardDamagedError,
    ShardedDataset,
    TarStore,
)
from diffbfr.shards.external_tars import open_tars
from diffbfr.shards.webdataset import webdataset_pipeline
from pipelines.dataset.columns import finish_column, write_column_shard
from pipelines.dataset.commits import Quarantined
from pipelines.dataset.manifest import open_dataset
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos

COLUMN = "irm1-test"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty-four faces in five shards, with an appended column of which one picture is quarantined."""
    root = tmp_path / "data"
    build(make_photos(tmp_path / "photos", 24), root, CONFIG)
    dataset = open_dataset(root)
    tasks = [f"task-{index}" for index in range(len(dataset.shards))]
    for index, keys in enumerate(dataset.shards):
        pictures = [(key, f"{v}.png", encode_png(dataset.lq(key, v))) for key in keys for v in (0, 1)]
        bad = [Quarantined(f"{keys[0]}.1.png", 0, "", "condition", "flat", "")] if index == 1 else []
        write_column_shard(str(root), COLUMN, index, tasks[index], pictures, bad)
    finish_column(str(root), ColumnInfo(COLUMN, ("0.png", "1.png"), "m" * 64), tasks)
    return root


def _keys(dataset: ShardedDataset) -> list[str]:
    return [key for keys in dataset.shards for key in keys]


def test_joined_columns_hold_what_the_dataset_reads_by_key(root: Path) -> None:
    dataset = open_dataset(root)
    columns = ("lq", "hq8", COLUMN)
    samples = list(webdataset_pipeline(dataset, columns))
    assert [sample["__key__"] for sample in samples] == _keys(dataset)
    quarantined = dataset.column(COLUMN).quarantined[0]
    for sample in samples:
        expected = {
            f"{column}.{name}": dataset.read(sample["__key__"], column, name)
            for column in columns
            for name in dataset.column(column).names
            if (sample["__key__"], name) != quarantined
        }
        assert {name: value for name, value in sample.items() if not name.startswith("__")} == expected


def test_every_finished_column_is_joined_by_default_and_stages_of_webdataset_follow(root: Path) -> None:
    dataset = open_dataset(root)
    pipeline = webdataset_pipeline(dataset)
    assert {name.partition(".")[0] for sample in pipeline for name in sample if name[0] != "_"} == {
        info.column for info in dataset.columns
    }
    decoded = (
        webdataset_pipeline(dataset, ["lq", "hq8"]).shuffle(10).decode("rgb8").to_tuple("__key__", "lq.0.jpg")
    )
    seen = dict(iter(decoded))
    assert seen.keys() == {sample.key for sample in dataset.samples}
    key = dataset.samples[0].key
    assert np.abs(seen[key].astype(int) - dataset.lq(key, 0).astype(int)).max() <= 2, "two JPEG decoders"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_holds_its_keys_alone(root: Path, split: str) -> None:
    dataset = open_dataset(root)
    keys = [sample["__key__"] for sample in webdataset_pipeline(dataset, ["lq"], split)]  # type: ignore[arg-type]
    assert sorted(keys) == dataset.keys(split)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [None, 3])
def test_two_ranks_of_two_workers_see_every_key_once(
    root: Path, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(root)
    pipeline = pickle.loads(pickle.dumps(webdataset_pipeline(dataset, ["lq", "hq8"], shuffle_seed=seed)))
    seen: list[list[str]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=2)
        seen.append([sample["__key__"] for sample in loader])
    assert all(seen)
    assert sorted(seen[0] + seen[1]) == [sample.key for sample in dataset.samples]


def test_a_shuffle_seed_changes_the_order_of_the_tars_alone(root: Path) -> None:
    dataset = open_dataset(root)
    in_order, shuffled, again = (
        [sample["__key__"] for sample in webdataset_pipeline(dataset, ["lq"], shuffle_seed=seed)]
        for seed in (None, 1, 1)
    )
    assert in_order != shuffled == again
    assert sorted(in_order) == sorted(shuffled)


@pytest.mark.parametrize(
    "damage", ["cut at a member", "cut in a member", "a changed byte", "gone", "another's"]
)
def test_a_damaged_tar_is_an_error_and_no_shorter_epoch(root: Path, damage: str) -> None:
    dataset = open_dataset(root)
    tar = root / "hq8/000001.tar"
    data = tar.read_bytes()
    index = dataset.index("hq8")
    offset = int(index.offset[index.tar_row == 1].max())
    if damage == "gone":
        tar.unlink()
    else:
        tar.write_bytes(
            {
                "cut at a member": data[: offset - 512],
                "cut in a member": data[: offset + 10],
                "a changed byte": data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :],
                "another's": (root / "hq8/000002.tar").read_bytes(),
            }[damage]
        )
    keys: list[str] = []
    with pytest.raises(ShardDamagedError, match=r"hq8/000001\.tar is not what was committed"):
        keys.extend(sample["__key__"] for sample in webdataset_pipeline(dataset, ["lq", "hq8"]))


@dataclass(frozen=True)
class _TwoCopies(TarStore):
    first: Path
    second: Path

    def copies(self, tar: str) -> Iterator[Path]:
        yield self.first / tar
        yield self.second / tar


def test_a_damaged_copy_is_replaced_by_another_in_the_middle_of_a_tar(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset(root)
    bad = tmp_path / "bad/lq/000001.tar"
    for path in sorted((root / "lq").glob("*.tar")):
        bad.parent.mkdir(parents=True, exist_ok=True)
        (bad.parent / path.name).write_bytes(path.read_bytes())
    index = dataset.index("lq")
    bad.write_bytes(bad.read_bytes()[: int(index.offset[index.tar_row == 1].max()) - 512])
    columns = {info.column: dataset.index(info.column) for info in dataset.columns}
    copies = _TwoCopies(tmp_path / "bad", root)
    twice = ShardedDataset(root, dataset.info, dataset.samples, columns, copies)
    assert list(webdataset_pipeline(twice, ["lq"])) == list(webdataset_pipeline(dataset, ["lq"]))


def test_what_cannot_be_joined_is_refused(root: Path) -> None:
    dataset = open_dataset(root)
    with pytest.raises(UsageError, match="no finished column 'irm2'"):
        webdataset_pipeline(dataset, ["lq", "irm2"])
    with pytest.raises(UsageError, match="at least one, each once"):
        webdataset_pipeline(dataset, ["lq", "lq"])


def test_tars_of_another_program_are_checked_too(root: Path) -> None:
    dataset = open_tars(root, "hq8")
    assert [sample["__key__"] for sample in webdataset_pipeline(dataset)] == _keys(open_dataset(root))
    with pytest.raises(UsageError, match="no val samples"):
        webdataset_pipeline(dataset, split="val")
