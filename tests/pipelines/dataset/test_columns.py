"""A column is appended completely or not at all, has the dataset's keys in order, and belongs to one model."""

from pathlib import Path

import numpy as np
import pytest

from diffbfr.degradation import PRESETS
from diffbfr.errors import IncompleteError, UsageError
from diffbfr.images import encode_png, lq_to_model
from diffbfr.shards import ColumnInfo, ShardDamagedError, ShardedDataset
from pipelines.dataset.columns import find_column_shard, finish_column, write_column_shard
from pipelines.dataset.commits import CommitConflictError
from pipelines.dataset.manifest import members_path, open_dataset
from pipelines.sources import open_source
from pipelines.steps.shard import ShardConfig, finish_dataset, plan_shards, shard

NAME = "irm1-0123456789ab"
INFO = ColumnInfo(NAME, ("0.png", "1.png"), model_digest="a" * 64)
TASKS = ("task-0", "task-1", "task-2")


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Ten faces of 32 px in three shards; one photo is refused."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encode_png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    (folder / "4.png").write_bytes(b"no picture")
    config = ShardConfig(32, 8, 2, 4, 0.0, 0.0, 0, PRESETS["paper"])
    tasks = plan_shards(open_source(folder), config, str(tmp_path / "data"))
    for task in tasks:
        shard(task)
    finish_dataset(str(tmp_path / "data"), tasks)
    return str(tmp_path / "data")


def _append(root: str, dataset: ShardedDataset, index: int, reverse: bool = False, levels: int = 0) -> None:
    files = [
        (key, f"{variant}.png", encode_png(lq_to_model(dataset.lq(key, variant), 8) // 2 + levels))
        for key in dataset.shards[index]
        for variant in range(2)
    ]
    write_column_shard(root, NAME, index, TASKS[index], reversed(files) if reverse else files)


def test_an_appended_column_is_read_beside_the_others(root: str) -> None:
    dataset = open_dataset(root)
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    for index in (2, 0, 1):
        _append(root, dataset, index)
    finish_column(root, INFO, TASKS)
    opened = open_dataset(root)
    assert opened.column(NAME) == INFO
    for sample in opened.samples:
        for variant in range(2):
            expected = lq_to_model(opened.lq(sample.key, variant), 8) // 2
            np.testing.assert_array_equal(opened.conditioning(NAME, sample.key, variant), expected)
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_index_is_no_matter_to_who_does_not_read_the_column(root: str) -> None:
    dataset = open_dataset(root)
    for index in range(3):
        _append(root, dataset, index)
    finish_column(root, INFO, TASKS)
    table = Path(root, members_path(NAME))
    table.write_bytes(table.read_bytes()[:-1])
    opened = open_dataset(root)
    assert opened.shards == dataset.shards
    assert opened.read(opened.samples[0].key, "lq", "0.jpg")
    for _ in range(2):
        with pytest.raises(ShardDamagedError, match="is not the table that was committed"):
            opened.conditioning(NAME, opened.samples[0].key, 0)


def test_a_column_is_not_visible_before_it_is_finished(root: str) -> None:
    dataset = open_dataset(root)
    _append(root, dataset, 0)
    _append(root, dataset, 2)
    with pytest.raises(IncompleteError, match=f"shard 1 of column {NAME}"):
        finish_column(root, INFO, TASKS)
    assert [column.column for column in open_dataset(root).columns] == ["hq32", "hq8", "lq"]
    with pytest.raises(UsageError, match="no finished column"):
        open_dataset(root).conditioning(NAME, dataset.keys("train")[0], 0)


def test_a_shard_of_a_column_is_found_when_it_is_whole(root: str) -> None:
    dataset = open_dataset(root)
    assert find_column_shard(root, NAME, 0, "task-0") is None
    _append(root, dataset, 0)
    _append(root, dataset, 0)
    commit = find_column_shard(root, NAME, 0, "task-0")
    assert commit is not None
    assert [member.key for member in commit.tars[0].members[::2]] == list(dataset.shards[0])
    tar = Path(root, NAME, "000000.tar")
    tar.write_bytes(tar.read_bytes()[:-512])
    assert find_column_shard(root, NAME, 0, "task-0") is None


def test_a_shard_of_another_model_or_with_other_pixels_does_not_replace_a_committed_one(root: str) -> None:
    dataset = open_dataset(root)
    _append(root, dataset, 0)
    whole = Path(root, NAME, "000000.tar").read_bytes()
    with pytest.raises(CommitConflictError, match="made from other inputs"):
        find_column_shard(root, NAME, 0, "another task")
    with pytest.raises(CommitConflictError, match="committed with other content"):
        _append(root, dataset, 0, levels=1)
    assert Path(root, NAME, "000000.tar").read_bytes() == whole


def test_keys_in_another_order_or_missing_members_are_refused(root: str) -> None:
    dataset = open_dataset(root)
    for index in range(3):
        _append(root, dataset, index, reverse=index == 1)
    with pytest.raises(
        UsageError,
        match=rf"shard 1 of column {NAME} holds 6 members; expected 3 keys x 0\.png, 1\.png in order",
    ):
        finish_column(root, INFO, TASKS)
    with pytest.raises(UsageError, match="made as 2 shards"):
        finish_column(root, INFO, TASKS[:2])


def test_a_finished_column_belongs_to_its_model(root: str) -> None:
    dataset = open_dataset(root)
    for index in range(3):
        _append(root, dataset, index)
    finish_column(root, INFO, TASKS)
    record = Path(root, NAME, "column.json").read_bytes()
    finish_column(root, INFO, TASKS)
    assert Path(root, NAME, "column.json").read_bytes() == record
    with pytest.raises(
        UsageError, match=f"already has a column {NAME} of model aaaaaaaaaaaa; expected that of bbbbbbbbbbbb"
    ):
        finish_column(root, ColumnInfo(NAME, INFO.names, "b" * 64), TASKS)


@pytest.mark.parametrize(
    "name", ["", "../lq", "IRM1", "a/b", "-x", "x" * 64, "lq", "hq32", "manifest", "commits"]
)
def test_an_unusable_column_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not usable; expected lower-case"):
        find_column_shard(str(tmp_path), name, 0, "task")
