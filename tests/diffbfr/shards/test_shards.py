"""Tars are deterministic and anybody can read them; members are read by key and checked; an epoch is a
permutation.
"""

import hashlib
import io
import multiprocessing
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diffbfr.degradation import DegradationParams, apply_target
from diffbfr.errors import UsageError
from diffbfr.images import encode_png, encode_webp
from diffbfr.shards import (
    ColumnIndex,
    ColumnInfo,
    DatasetInfo,
    Member,
    Sample,
    ShardDamagedError,
    ShardedDataset,
    epoch_order,
    row_at,
)
from diffbfr.shards.tar import build_tar, check_tar, write_tar

HQ_PX, LQ_PX = 16, 4
ENTRIES = [
    ("a.0.jpg", b"first"),
    ("a.json", b'{"n": 1}'),
    ("b-2_x.0.jpg", bytes(range(256)) * 5),
    ("b-2_x.json", b""),
]
PLAIN = DegradationParams(sigma=0.0, r=1.0, delta=0.0, q=90, gray=False, flip=False, noise_seed=1)
TURNED = DegradationParams(sigma=0.0, r=1.0, delta=0.0, q=90, gray=True, flip=True, noise_seed=2)


def test_a_tar_holds_its_entries_in_order_with_nothing_of_the_machine_in_it() -> None:
    built = build_tar(ENTRIES)
    with tarfile.open(fileobj=io.BytesIO(built.data), mode="r:") as tar:
        found = tar.getmembers()
        assert [(member.name, tar.extractfile(member).read()) for member in found] == ENTRIES  # type: ignore[union-attr]
    assert {
        (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) for member in found
    } == {(0, 0, 0, "", "", 0o444)}
    assert all(member.isreg() for member in found)
    assert len(built.data) % 10240 == 0


def test_offsets_and_digests_point_at_the_contents() -> None:
    built = build_tar(ENTRIES)
    for member, (name, content) in zip(built.members, ENTRIES, strict=True):
        assert member.name == name
        assert built.data[member.offset : member.offset + member.length] == content
        assert member.sha256 == hashlib.sha256(content).hexdigest()


def test_a_tar_in_memory_equals_a_tar_on_disk(tmp_path: Path) -> None:
    members = write_tar(tmp_path / "x.tar", ENTRIES)
    built = build_tar(ENTRIES)
    assert (tmp_path / "x.tar").read_bytes() == built.data
    assert tuple(members) == built.members


def test_webdataset_groups_our_members_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset as wds

    write_tar(tmp_path / "000000.tar", ENTRIES)
    samples = list(wds.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a", "b-2_x"]
    assert samples[0]["0.jpg"] == b"first"
    assert samples[1]["0.jpg"] == ENTRIES[2][1]
    assert samples[1]["json"] == b""


@pytest.mark.parametrize("name", ["", "x" * 101, "käthe.jpg"])
def test_a_name_that_ustar_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"member name|codec"):
        build_tar([(name, b"")])


def test_every_cut_of_a_tar_is_found_by_its_count() -> None:
    built = build_tar(ENTRIES)
    end_of_contents = built.members[-1].offset + built.members[-1].length
    for cut in range(0, end_of_contents, 512):
        with pytest.raises(ShardDamagedError):
            check_tar(built.data[:cut], len(ENTRIES))


def test_an_empty_tar_is_whole() -> None:
    built = build_tar([])
    check_tar(built.data, 0)
    assert built.members == ()


@pytest.fixture
def faces() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return {key: rng.integers(0, 256, (HQ_PX, HQ_PX, 3), dtype=np.uint8) for key in ("aa", "bb", "cc")}


@pytest.fixture
def dataset(tmp_path: Path, faces: dict[str, NDArray[np.uint8]]) -> ShardedDataset:
    """Three faces in two shards, variant 0 plain, variant 1 flipped and gray, with one appended column."""
    keys = sorted(faces)

    def column(info: ColumnInfo, content: Callable[[str, str], bytes]) -> ColumnIndex:
        members = []
        (tmp_path / info.column).mkdir()
        for shard, part in enumerate((keys[:2], keys[2:])):
            tar = f"{info.column}/{shard:06d}.tar"
            files = [(key, name, content(key, name)) for key in part for name in info.names]
            written = write_tar(tmp_path / tar, [(f"{key}.{name}", data) for key, name, data in files])
            members += [
                Member(key, name, info.column, tar, at.offset, at.length, at.sha256)
                for (key, name, _), at in zip(files, written, strict=True)
            ]
        return ColumnIndex.of(info, keys, members)

    columns = {
        "hq16": column(ColumnInfo("hq16", ("webp",)), lambda key, _: encode_webp(faces[key])),
        "hq4": column(ColumnInfo("hq4", ("png",)), lambda key, _: encode_png(faces[key][:LQ_PX, :LQ_PX])),
        "lq": column(
            ColumnInfo("lq", ("0.jpg", "1.jpg", "json")),
            lambda key, name: encode_png(faces[key][:3, :5]) + name.encode(),
        ),
        "irm1": column(
            ColumnInfo("irm1", ("0.png", "1.png"), "m" * 64),
            lambda key, name: encode_png(faces[key][: 4 + int(name[0])]),
        ),
    }
    samples = [
        Sample(key, split, f"{key}.png", 1, "0" * 64, HQ_PX, HQ_PX, "1" * 64, "2" * 64, (PLAIN, TURNED))
        for key, split in zip(keys, ("train", "val", "train"), strict=True)
    ]
    info = DatasetInfo(HQ_PX, LQ_PX, 2, 2, 2, 3, 2, 1, 0, 0, "c" * 64, "a" * 64, "r" * 64, "test")
    return ShardedDataset(tmp_path, info, samples, columns)


def test_keys_of_a_split_are_sorted_and_shards_hold_all_of_them(dataset: ShardedDataset) -> None:
    assert dataset.keys("train") == ["aa", "cc"]
    assert dataset.keys("val") == ["bb"]
    assert dataset.keys("test") == []
    assert dataset.shards == (("aa", "bb"), ("cc",))
    assert len(dataset) == 3


def test_pictures_come_back_with_their_variants_flip_and_gray(
    dataset: ShardedDataset, faces: dict[str, NDArray[np.uint8]]
) -> None:
    for key, face in faces.items():
        np.testing.assert_array_equal(dataset.hq(key, 0), face)
        np.testing.assert_array_equal(dataset.hq(key, 1), apply_target(face, TURNED))
        np.testing.assert_array_equal(dataset.hq_low(key, 1), apply_target(face[:LQ_PX, :LQ_PX], TURNED))
        np.testing.assert_array_equal(dataset.lq(key, 1), face[:3, :5])
        np.testing.assert_array_equal(dataset.conditioning("irm1", key, 1), face[:5])
        assert dataset.lq_bytes(key, 1).endswith(b"1.jpg")


def test_what_a_dataset_does_not_have_is_a_usage_error_that_says_what_it_has(dataset: ShardedDataset) -> None:
    with pytest.raises(UsageError, match="no key 'zz'"):
        dataset.sample("zz")
    with pytest.raises(UsageError, match=r"no finished column 'irm9'; it has hq16, hq4, irm1, lq"):
        dataset.column("irm9")
    with pytest.raises(UsageError, match=r"no member 'png'; it has webp"):
        dataset.read("aa", "hq16", "png")
    with pytest.raises(UsageError, match=r"holds 0\.\.1"):
        dataset.hq("aa", 2)


def test_the_appended_column_says_which_model_made_it(dataset: ShardedDataset) -> None:
    assert dataset.column("irm1").model_digest == "m" * 64
    assert [info.column for info in dataset.columns] == ["hq16", "hq4", "irm1", "lq"]


def _read_everything(dataset: ShardedDataset) -> str:
    summer = hashlib.sha256()
    for info in dataset.columns:
        for sample in dataset.samples:
            for name in info.names:
                summer.update(dataset.read(sample.key, info.column, name))
    return summer.hexdigest()


def test_every_flipped_bit_is_noticed_when_its_member_is_read(dataset: ShardedDataset) -> None:
    tar = dataset.root / "lq" / "000000.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        spans = {member.name: (member.offset_data, member.size) for member in opened}
    rng = np.random.default_rng(1)
    for name, (offset, size) in spans.items():
        key, _, member = name.partition(".")
        for bit in rng.integers(0, size * 8, 20):
            damaged = bytearray(whole)
            damaged[offset + bit // 8] ^= 1 << (bit % 8)
            tar.write_bytes(damaged)
            with pytest.raises(ShardDamagedError, match=f"{key}.{member}"):
                dataset.read(key, "lq", member)
    tar.write_bytes(whole)
    _read_everything(dataset)


def test_a_cut_or_missing_tar_is_noticed_and_never_read_as_a_shorter_one(dataset: ShardedDataset) -> None:
    tar = dataset.root / "lq" / "000001.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        end = max(member.offset_data + member.size for member in opened)
    for cut in range(0, end, 512):
        tar.write_bytes(whole[:cut])
        with pytest.raises(ShardDamagedError, match="ends early"):
            _read_everything(dataset)
    tar.unlink()
    with pytest.raises(ShardDamagedError, match="is gone"):
        dataset.read("cc", "lq", "json")


def test_a_pickled_dataset_reads_the_same(dataset: ShardedDataset) -> None:
    assert _read_everything(pickle.loads(pickle.dumps(dataset))) == _read_everything(dataset)


def test_a_forked_child_reads_the_same_while_the_parent_reads(dataset: ShardedDataset) -> None:
    expected = _read_everything(dataset)
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        answers = pool.map_async(_read_everything, [dataset] * 4)
        assert _read_everything(dataset) == expected
        assert answers.get(60) == [expected] * 4


def test_a_column_with_other_keys_or_names_is_refused(dataset: ShardedDataset) -> None:
    members = [
        Member("aa", "png", "x", "x/000000.tar", 512, 1, "0" * 64),
        Member("bb", "png", "x", "x/000000.tar", 1536, 1, "0" * 64),
    ]
    info = ColumnInfo("x", ("png",))
    assert ColumnIndex.of(info, ["aa", "bb"], members).offset.tolist() == [[512], [1536]]
    for keys, names in (
        (["aa", "cc"], ("png",)),
        (["bb", "aa"], ("png",)),
        (["aa"], ("png",)),
        (["aa", "bb"], ("png", "webp")),
    ):
        with pytest.raises(UsageError, match=r"not .* keys x .* names in order"):
            ColumnIndex.of(ColumnInfo("x", names), keys, members)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_an_epoch_shows_every_sample_once(n: int) -> None:
    for epoch in (0, 1, 5):
        assert sorted(epoch_order(3, epoch, n).tolist()) == list(range(n))


def test_the_order_depends_on_seed_and_epoch_and_never_on_the_machine() -> None:
    assert epoch_order(0, 0, 8).tolist() == [5, 4, 6, 7, 0, 3, 1, 2]  # frozen: runs resume by position
    orders = {tuple(epoch_order(seed, epoch, 100).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_order_cannot_be_changed_by_who_reads_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 1


def test_first_places_are_spread_evenly_over_the_samples() -> None:
    counts = np.bincount([int(epoch_order(seed, 0, 5)[0]) for seed in range(2000)], minlength=5)
    assert (np.abs(counts - 400) < 5 * np.sqrt(400 * 0.8)).all()


def test_the_position_alone_says_which_sample_comes() -> None:
    n = 10
    expected = [int(epoch_order(7, p // n, n)[p % n]) for p in range(35)]
    assert [row_at(7, p, n) for p in range(35)] == expected


def test_ranks_that_share_positions_see_every_sample_once_an_epoch() -> None:
    n = 12
    for ranks in (1, 2, 3, 7):
        seen = [row_at(1, p, n) for rank in range(ranks) for p in range(n) if p % ranks == rank]
        assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(("epoch", "n"), [(0, 0), (-1, 5)])
def test_an_order_of_nothing_is_refused(epoch: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected epoch >= 0"):
        epoch_order(0, epoch, n)
