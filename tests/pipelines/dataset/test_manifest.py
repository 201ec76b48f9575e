"""Rows come back from parquet as they went in, and a dataset opens only when it is whole."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from diffbfr.degradation import PRESETS, DegradationParams
from diffbfr.errors import UsageError
from diffbfr.shards import Member, Sample, ShardDamagedError
from pipelines.dataset import manifest
from pipelines.dataset.manifest import (
    LedgerRow,
    TableWriter,
    members_path,
    open_dataset,
    read_columns,
    read_info,
    read_ledger,
    read_rows,
    read_shard_keys,
    write_ledger,
    write_rows,
)
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.sources import open_source
from pipelines.steps.shard import ShardConfig, finish_dataset, plan_shards, shard

PARAMS = DegradationParams(
    sigma=0.1 + 0.2, r=1 / 3, delta=1e-300, q=99, gray=True, flip=False, noise_seed=2**63 - 1
)
SAMPLES = [
    Sample("a", "train", "é/人.png", 10, "0" * 64, 3, 4, "1" * 64, "2" * 64, (PARAMS, PARAMS)),
    Sample("b", "test", "", 2**40, "", 0, 0, "", "", ()),
]


@dataclass(frozen=True)
class _Everything:
    kind: Literal["x", "y"]
    words: tuple[str, ...]
    inner: tuple[DegradationParams, ...]
    number: float


@dataclass(frozen=True)
class _Unfit:
    values: dict[str, int]


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    config = ShardConfig(32, 8, 2, 4, 0.0, 0.0, 0, PRESETS["paper"])
    tasks = plan_shards(open_source("synthetic:count=10,px=32"), config, str(root))
    for task in tasks:
        shard(task)
    finish_dataset(str(root), tasks)
    return root


@pytest.fixture
def copied(dataset_root: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(dataset_root, tmp_path / "data"))


@pytest.mark.parametrize(
    ("row_type", "rows"),
    [
        (Sample, SAMPLES),
        (Sample, []),
        (Member, [Member("a", "0.jpg", "lq", "lq/000000.tar", 512, 2**33, "f" * 64)]),
        (_Everything, [_Everything("x", ("é", ""), (PARAMS,), -0.0), _Everything("y", (), (), float("inf"))]),
    ],
)
def test_rows_come_back_as_they_went_in(tmp_path: Path, row_type: type[object], rows: list[object]) -> None:
    write_rows(str(tmp_path / "t.parquet"), row_type, rows)
    assert read_rows(str(tmp_path / "t.parquet"), row_type) == rows


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(str(tmp_path / name), Sample, SAMPLES)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_table_written_in_pieces_appears_only_when_it_is_closed(tmp_path: Path) -> None:
    table = TableWriter(str(tmp_path / "t.parquet"), Sample)
    for sample in SAMPLES:
        table.append([sample])
    table.append([])
    assert list(tmp_path.iterdir()) == []
    table.close()
    assert read_rows(str(tmp_path / "t.parquet"), Sample) == SAMPLES


def test_other_tools_see_plain_columns(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_rows(str(tmp_path / "t.parquet"), Sample, SAMPLES)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == [field.name for field in fields(Sample)]
    assert table["width"].to_pylist() == [3, 0]
    assert table["variants"].to_pylist()[0][0]["q"] == 99


def test_a_table_of_other_rows_or_no_table_is_a_usage_error(tmp_path: Path) -> None:
    place = str(tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="is not there; expected a table of Sample"):
        read_rows(place, Sample)
    write_rows(place, Sample, SAMPLES)
    with pytest.raises(UsageError, match="expected those of Member"):
        read_rows(place, Member)
    Path(place).write_bytes(Path(place).read_bytes()[:-20])
    with pytest.raises(UsageError, match="cannot be read"):
        read_rows(place, Sample)


def test_a_row_that_no_table_can_hold_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="has no place in a table"):
        write_rows(str(tmp_path / "t.parquet"), _Unfit, [])


def test_a_ledger_comes_back_as_it_went_in(tmp_path: Path) -> None:
    rows = [
        LedgerRow("é.png", "restored", "", "", 10, "a" * 64, 4, 5, 1, "", "é.png", "b" * 64, "c" * 64, 0.5),
        LedgerRow(
            "x.txt", "quarantined", "not_an_image", "it is text", 3, "d" * 64, 0, 0, 0, "", "", "", "", 0.0
        ),
    ]
    write_ledger(str(tmp_path / "ledger.parquet"), rows)
    assert read_ledger(str(tmp_path / "ledger.parquet")) == rows


def test_a_dataset_opens_with_its_samples_columns_and_shards(dataset_root: Path) -> None:
    dataset = open_dataset(dataset_root)
    assert dataset.info == read_info(dataset_root)
    assert (dataset.info.num_samples, dataset.info.num_train, dataset.info.num_shards) == (10, 10, 3)
    assert (
        sorted(sample.key for sample in dataset.samples)
        == [sample.key for sample in dataset.samples]
        == dataset.keys("train")
    )
    assert list(dataset.columns) == sorted(read_columns(dataset_root), key=lambda column: column.column)
    assert dataset.shards == read_shard_keys(dataset_root)
    for sample in dataset.samples:
        assert dataset.hq(sample.key, 1).shape == (32, 32, 3)
        assert dataset.hq_low(sample.key, 0).shape == (8, 8, 3)


def test_an_unfinished_or_missing_dataset_is_a_usage_error(copied: Path, tmp_path: Path) -> None:
    (copied / "dataset.json").unlink()
    for place in (copied, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"no dataset\.json; expected a finished dataset"):
            open_dataset(place)


def _seal_anew(root: Path, path: str, sha256: str) -> None:
    record = read_checksummed_json(root / "dataset.json")
    write_checksummed_json(root / "dataset.json", record | {"tables": record["tables"] | {path: sha256}})


def test_a_table_that_is_not_the_committed_one_is_damage(copied: Path) -> None:
    for path in (manifest.SAMPLES, members_path("lq")):
        whole = (copied / path).read_bytes()
        (copied / path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ShardDamagedError, match="is not the table that was committed"):
            open_dataset(copied)
        (copied / path).write_bytes(whole)
    open_dataset(copied)


def test_a_manifest_that_does_not_fit_its_dataset_is_noticed(copied: Path) -> None:
    samples = copied / manifest.SAMPLES
    whole = samples.read_bytes()
    _seal_anew(
        copied, manifest.SAMPLES, write_rows(str(samples), Sample, read_rows(str(samples), Sample)[:-1])
    )
    with pytest.raises(UsageError, match=r"has 9 rows, dataset\.json says 10"):
        open_dataset(copied)
    samples.write_bytes(whole)
    _seal_anew(copied, manifest.SAMPLES, hashlib.sha256(whole).hexdigest())
    column = str(copied / members_path("lq"))
    rows = read_rows(column, Member)
    for damaged in (rows[:-1], rows[1:] + rows[:1]):
        _seal_anew(copied, members_path("lq"), write_rows(column, Member, damaged))
        with pytest.raises(UsageError, match="does not hold the dataset's keys in order"):
            open_dataset(copied)
