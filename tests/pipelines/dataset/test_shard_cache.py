"""A dataset on S3 reads like one on disk; the cache stays within its limit, and damage is detected."""

import hashlib
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.images import encode_png
from diffbfr.shards import ColumnInfo, ShardDamagedError, ShardedDataset
from pipelines import storage
from pipelines.dataset import shard_cache
from pipelines.dataset.columns import finish_column, write_column_shard
from pipelines.dataset.manifest import open_dataset
from pipelines.dataset.shard_cache import CachedTarStore
from tests.pipelines.tiny_dataset import make_dataset

COLUMN = "irm1-0123456789ab"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve faces in three shards, with one appended column."""
    root = make_dataset(tmp_path_factory.mktemp("cache"))
    dataset = open_dataset(root)
    for index, keys in enumerate(dataset.shards):
        pictures = [(key, f"{v}.png", encode_png(dataset.lq(key, v) // 2)) for key in keys for v in (0, 1)]
        write_column_shard(str(root), COLUMN, index, f"task-{index}", pictures)
    finish_column(
        str(root), ColumnInfo(COLUMN, ("0.png", "1.png"), "m" * 64), [f"task-{index}" for index in range(3)]
    )
    return root


@pytest.fixture
def remote(local: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same dataset on S3, and an empty cache."""
    uri = f"{s3_bucket}/{tmp_path.name}"
    storage.put_tree(local, uri)
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    return uri


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars that are fetched."""
    names: list[str] = []
    read = storage.read_bytes

    def note(uri: storage.Uri) -> bytes:
        if str(uri).endswith(".tar"):
            names.append("/".join(str(uri).split("/")[-2:]))
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", note)
    return names


def _digest(dataset: ShardedDataset) -> str:
    summer = hashlib.sha256()
    for sample in dataset.samples:
        for column in dataset.columns:
            for name in column.names:
                summer.update(dataset.read(sample.key, column.column, name))
    return summer.hexdigest()


def _tars(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "shards").glob("*.tar"))


def test_every_member_is_the_one_on_disk_and_only_what_is_read_is_fetched_once(
    local: Path, remote: str, tmp_path: Path, fetched: list[str]
) -> None:
    dataset = open_dataset(remote)
    assert fetched == []
    key = dataset.shards[1][0]
    assert dataset.lq_bytes(key, 0) == open_dataset(local).lq_bytes(key, 0)
    assert (
        dataset.conditioning(COLUMN, key, 1).shape == open_dataset(local).conditioning(COLUMN, key, 1).shape
    )
    assert fetched == ["lq/000001.tar", f"{COLUMN}/000001.tar"]
    assert _digest(dataset) == _digest(open_dataset(local))
    assert sorted(fetched) == sorted(
        f"{column}/{index:06d}.tar" for column in ("hq32", "hq8", "lq", COLUMN) for index in range(3)
    )
    assert (
        _digest(open_dataset(remote))
        == _digest(pickle.loads(pickle.dumps(dataset)))
        == _digest(open_dataset(local))
    )
    assert len(fetched) == 12 == len(_tars(tmp_path))
    for path in _tars(tmp_path):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_the_cache_stays_within_its_bound_and_removes_what_was_used_longest_ago(
    remote: str, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 35_000
    monkeypatch.setenv("DIFFBFR_CACHE_BYTES", str(limit))
    dataset = open_dataset(remote)
    keys = [shard[0] for shard in dataset.shards]
    dataset.lq_bytes(keys[0], 0)
    size = _tars(tmp_path)[0].stat().st_size
    assert limit // size in (1, 3)  # the figures below hold for a cache of three
    for number, path in enumerate(_tars(tmp_path)):
        os.utime(path, ns=(number, number))
    for key in (keys[1], keys[2], keys[0]):  # 0 is used again, so 1 is the oldest
        dataset.read(key, "hq8", "png")
        assert sum(path.stat().st_size for path in _tars(tmp_path)) <= limit
    fetched.clear()
    dataset.read(keys[0], "hq8", "png")
    assert fetched == []
    everything = _digest(dataset)
    assert sum(path.stat().st_size for path in _tars(tmp_path)) <= limit
    monkeypatch.setenv("DIFFBFR_CACHE_BYTES", str(1 << 30))
    assert _digest(open_dataset(remote)) == everything


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = CachedTarStore("s3://x", str(tmp_path), 100)
    for number, (name, num_bytes) in enumerate({"old.tar": 40, "used.tar": 30, "new.tar": 20}.items()):
        (tmp_path / name).write_bytes(bytes(num_bytes))
        os.utime(tmp_path / name, ns=(number, number))
    (tmp_path / f"killed{shard_cache._FETCHING}").write_bytes(bytes(5))
    os.utime(tmp_path / f"killed{shard_cache._FETCHING}", ns=(0, 0))
    (tmp_path / f"coming{shard_cache._FETCHING}").write_bytes(bytes(5))
    used = shard_cache._open_locked(tmp_path / "old.tar")
    assert used is not None
    used.close()
    cache._free_space(shard_cache.Tar("x.tar", 40, ""))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"coming{shard_cache._FETCHING}", "old.tar"]
    assert shard_cache._open_locked(tmp_path / "used.tar") is None


def test_a_file_is_not_removed_by_a_neighbour_while_it_is_read(
    local: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache with room for one shard has two readers: the second waits, and nothing counts as damaged."""
    biggest = max(path.stat().st_size for path in local.rglob("*.tar"))
    monkeypatch.setenv("DIFFBFR_CACHE_BYTES", str(biggest))
    monkeypatch.setattr(shard_cache, "_WAIT_FOR_SPACE_S", 0.1)
    cache, neighbour = shard_cache.cache_of(remote), open_dataset(remote)
    key = neighbour.shards[1][0]
    reading = cache.copies("lq/000000.tar")
    place = next(reading)
    with pytest.raises(
        UsageError,
        match=r"all of them in use for .*; expected room for lq/000001\.tar; raise DIFFBFR_CACHE_BYTES",
    ):
        neighbour.lq_bytes(key, 0)
    assert place.read_bytes() == (local / "lq" / "000000.tar").read_bytes()
    monkeypatch.setattr(shard_cache, "_WAIT_FOR_SPACE_S", 60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(neighbour.lq_bytes, key, 0)
        reading.close()
        assert waiting.result() == open_dataset(local).lq_bytes(key, 0)
    assert not place.exists()


def test_what_is_kept_in_memory_of_a_shard_does_not_grow_with_its_members(remote: str) -> None:
    open_dataset(remote).lq_bytes(open_dataset(remote).shards[0][0], 0)
    kept = shard_cache._tars(storage.absolute(remote), "commits", 0)
    assert [tar.tar for tar in kept] == ["hq32/000000.tar", "hq8/000000.tar", "lq/000000.tar"]
    assert len(pickle.dumps(kept)) < 1000


def test_a_shard_larger_than_the_cache_is_one_clear_line(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE_BYTES", "1000")
    dataset = open_dataset(remote)
    with pytest.raises(
        UsageError,
        match=r"000000\.tar has \d+ bytes, the cache in .* may have 1000; .* raise DIFFBFR_CACHE_BYTES",
    ):
        dataset.lq_bytes(dataset.shards[0][0], 0)
    monkeypatch.setenv("DIFFBFR_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="expected a whole number of bytes"):
        open_dataset(remote)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_a_copy_that_was_damaged_or_removed_here_is_fetched_anew(
    local: Path, remote: str, tmp_path: Path, fetched: list[str], damage: str
) -> None:
    dataset = open_dataset(remote)
    expected = _digest(dataset)
    fetched.clear()
    for path in _tars(tmp_path):
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        elif damage == "flip":
            for place in range(512, len(data), 64):
                data[place] ^= 1
            path.write_bytes(data)
        else:
            path.write_bytes(data[:700] if damage == "cut" else b"")
    assert _digest(dataset) == expected
    assert len(fetched) == 12


def test_a_shard_that_is_damaged_or_gone_on_s3_is_noticed_before_a_sample_is_used(remote: str) -> None:
    dataset = open_dataset(remote)
    key = dataset.shards[0][0]
    data = bytearray(storage.read_bytes(f"{remote}/lq/000000.tar"))
    data[-1] ^= 1
    storage.write_atomic(f"{remote}/lq/000000.tar", bytes(data))
    with pytest.raises(
        ShardDamagedError, match=r"lq/000000\.tar came 2 times with other bytes than were committed"
    ):
        dataset.lq_bytes(key, 0)
    storage.remove_tree(f"{remote}/hq8/000000.tar")
    with pytest.raises(ShardDamagedError, match=r"hq8/000000\.tar is gone"):
        dataset.hq_low(key, 0)


def test_one_bit_that_flips_on_the_way_costs_a_second_fetch(
    remote: str, monkeypatch: pytest.MonkeyPatch, local: Path
) -> None:
    read, flipped = storage.read_bytes, []

    def flip_once(uri: storage.Uri) -> bytes:
        data = read(uri)
        if str(uri).endswith("hq32/000000.tar") and not flipped:
            flipped.append(uri)
            return data[:1000] + bytes([data[1000] ^ 16]) + data[1001:]
        return data

    monkeypatch.setattr(storage, "read_bytes", flip_once)
    assert _digest(open_dataset(remote)) == _digest(open_dataset(local))
    assert flipped


def _read_all(remote: str, limit: int) -> str:
    os.environ["DIFFBFR_CACHE_BYTES"] = str(limit)
    return _digest(open_dataset(remote))


@pytest.mark.slow
def test_processes_share_one_cache_that_is_too_small_for_them(
    local: Path, remote: str, tmp_path: Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        digests = pool.starmap(_read_all, [(remote, 45_000)] * 4, chunksize=1)
    assert digests == [_digest(open_dataset(local))] * 4
    assert sum(path.stat().st_size for path in _tars(tmp_path)) <= 45_000
    assert not list((tmp_path / "cache" / "shards").glob(f"*{shard_cache._FETCHING}"))
