"""A dataset whose records were forged and sealed again is found by `data verify`, and read by nobody."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffbfr.errors import DiffBFRError
from diffbfr.shards import Member, ShardDamagedError
from diffbfr.shards.tar import build_tar
from pipelines.dataset import manifest
from pipelines.dataset.manifest import members_path, open_dataset, read_record, read_rows
from pipelines.dataset.tables import write_rows
from pipelines.dataset.verify import plan_verification, verify_shard
from pipelines.dataset.verify_records import DatasetProblem, verify_records
from tests.pipelines.tiny_dataset import make_dataset

Record = dict[str, Any]
HUGE = 1 << 62


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def reseal(path: Path, change: Callable[[Record], object]) -> None:
    """Change a record and give it a checksum that fits."""
    record = json.loads(path.read_text())
    del record["seal"]
    change(record)
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**record, "seal": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True))


def forge_index(root: Path, change: Callable[[Member], Member]) -> None:
    """Change the first row of the ground truths' index, and the digest of that table in `dataset.json`."""
    path = members_path("hq32")
    rows = read_rows(str(root / path), Member)
    sha256 = write_rows(str(root / path), Member, [change(rows[0]), *rows[1:]])
    reseal(root / "dataset.json", lambda record: record["tables"].update({path: sha256}))


def problems(root: Path, level: int) -> list[DatasetProblem]:
    """What `diffbfr data verify` finds; an error that ends it counts as found."""
    try:
        tasks = plan_verification(str(root), level)
        found = list(verify_records(str(root)))
        for task in tasks:
            found += verify_shard(task).problems
    except DiffBFRError as error:
        return [DatasetProblem("", str(error))]
    return found


def test_an_honest_dataset_has_no_problem(root: Path) -> None:
    assert problems(root, 4) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda member: replace(member, length=HUGE),
        lambda member: replace(member, offset=HUGE),
        lambda member: replace(member, offset=-1),
        lambda member: replace(member, length=member.length + 512),
        lambda member: replace(member, tar="../../../etc/passwd"),
        lambda member: replace(member, tar="/dev/zero"),
        lambda member: replace(member, tar="lq/000000.tar"),
        lambda member: replace(member, sha256="0" * 64),
    ],
    ids=["length", "offset", "negative", "longer", "path", "device", "column", "digest"],
)
def test_an_index_that_lies_is_found_and_costs_no_memory(
    root: Path, change: Callable[[Member], Member]
) -> None:
    key = open_dataset(root).samples[0].key
    forge_index(root, change)

    assert problems(root, 0)
    with pytest.raises(ShardDamagedError):
        open_dataset(root).read(key, "hq32", "webp")


def test_an_index_with_a_digest_that_is_none_is_no_traceback(root: Path) -> None:
    forge_index(root, lambda member: replace(member, sha256="no hex"))
    with pytest.raises(ShardDamagedError, match="a digest that is none"):
        open_dataset(root)


def set_member(record: Record, **values: Any) -> None:
    record["tars"][0]["members"][0].update(values)


COMMITS: dict[str, Callable[[Record], object]] = {
    "length": lambda record: set_member(record, length=HUGE),
    "negative": lambda record: set_member(record, offset=-512),
    "no number": lambda record: set_member(record, length="much"),
    "key": lambda record: set_member(record, key="../../x"),
    "name": lambda record: set_member(record, name="a/../../x"),
    "other key": lambda record: set_member(record, key="another"),
    "other column": lambda record: set_member(record, column="lq"),
    "tar": lambda record: record["tars"][0].update(tar="../../victim/000000.tar"),
    "absolute": lambda record: record["tars"][0].update(tar="/etc/000000.tar"),
    "tar of another shard": lambda record: record["tars"][0].update(tar="hq32/000001.tar"),
    "size": lambda record: record["tars"][0].update(num_bytes=HUGE),
    "index": lambda record: record.update(index=7),
    "no tar": lambda record: record.update(tars=record["tars"][1:]),
    "a tar twice": lambda record: record["tars"].append(record["tars"][0]),
    "no list": lambda record: record.update(tars=7),
}


@pytest.mark.parametrize("change", COMMITS.values(), ids=COMMITS)
def test_a_commit_that_lies_is_found(root: Path, change: Callable[[Record], object]) -> None:
    reseal(root / "commits/000000.json", change)
    for level in (0, 4):
        assert problems(root, level)


DATASETS: dict[str, Callable[[Record], object]] = {
    "column": lambda record: record["columns"][0].update(column="../.."),
    "absolute column": lambda record: record["columns"][0].update(column="/etc"),
    "table": lambda record: record["tables"].update({"../../x.parquet": "0" * 64}),
    "shards": lambda record: record.update(num_shards=HUGE),
    "a million shards": lambda record: record.update(num_shards=10**6),
    "samples": lambda record: record.update(num_samples=HUGE),
    "pixels": lambda record: record.update(hq_px=HUGE),
    "negative": lambda record: record.update(num_shards=-1),
    "no number": lambda record: record.update(variants="two"),
    "source": lambda record: record.update(source=["x"]),
}


@pytest.mark.parametrize("change", DATASETS.values(), ids=DATASETS)
def test_a_description_that_lies_is_found(root: Path, change: Callable[[Record], object]) -> None:
    reseal(root / "dataset.json", change)
    assert problems(root, 0)


def test_an_appended_column_of_another_name_is_found(root: Path) -> None:
    (root / "extra").mkdir()
    (root / "extra/column.json").write_text((root / "dataset.json").read_text())
    reseal(
        root / "extra/column.json",
        lambda record: record.update(column="../..", names=["0.png"], model_digest="m", table="0" * 64),
    )
    with pytest.raises(ShardDamagedError, match="expected extra"):
        read_record(root)
    assert problems(root, 0)


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop", "device of the recorded size"])
def test_a_shard_that_is_no_file_is_found_and_does_not_hang(root: Path, kind: str, level: int) -> None:
    tar = root / "hq32/000000.tar"
    key = open_dataset(root).shards[0][0]
    put(tar, kind)
    if kind == "device of the recorded size":
        reseal(root / "commits/000000.json", lambda record: record["tars"][0].update(num_bytes=0, members=[]))

    assert any("hq32" in problem.path or "shard 0" in problem.message for problem in problems(root, level))
    with pytest.raises((ShardDamagedError, OSError)):
        open_dataset(root).read(key, "hq32", "webp")


@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "commits/000000.json",
        "build.json",
        "plan/000000.json",
        manifest.SAMPLES,
        manifest.QUARANTINE,
        "manifest/columns/lq.parquet",
    ],
)
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_a_record_or_table_that_is_no_file_is_found_and_does_not_hang(
    root: Path, name: str, kind: str
) -> None:
    put(root / name, kind)
    assert problems(root, 4)


def put(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/zero")


def test_a_tar_forged_with_its_digest_is_found_by_what_it_holds(root: Path) -> None:
    """The members that the record names are there, with their digests, but the tar gives others to a reader."""
    tar = root / "hq32/000000.tar"
    whole = bytearray(tar.read_bytes())
    whole[:100] = b"evil.webp".ljust(100, b"\0")
    header = whole[:148] + b" " * 8 + whole[156:512]
    whole[148:156] = b"%06o\0 " % sum(header)
    tar.write_bytes(whole)
    sha256 = hashlib.sha256(whole).hexdigest()
    reseal(root / "commits/000000.json", lambda record: record["tars"][0].update(sha256=sha256))

    messages = [problem.message for problem in problems(root, 2) if problem.path == "hq32/000000.tar"]
    assert messages == ["it holds other members than its record says; make the shard again"]


def test_a_tar_of_other_content_is_found_though_its_digest_is_the_recorded_one(root: Path) -> None:
    tar = root / "hq32/000000.tar"
    other = build_tar([("a.webp", b"x")]).data.ljust(tar.stat().st_size, b"\0")
    tar.write_bytes(other)
    sha256 = hashlib.sha256(other).hexdigest()
    reseal(
        root / "commits/000000.json",
        lambda record: record["tars"][0].update(sha256=sha256, num_bytes=len(other)),
    )
    assert [problem.path for problem in problems(root, 2) if problem.path.startswith("hq32")]
