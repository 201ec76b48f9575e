"""Tars that webdataset wrote are indexed, read by key in the order of a run, and noticed when they change
or were cut.
"""

from itertools import islice
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.shards import SampleLoader, ShardDamagedError
from diffbfr.shards.external_tars import index_tars, open_tars
from diffbfr.shards.tar import write_tar

KEYS = [f"people/{number:04d}" for number in range(7)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven samples in three tars of webdataset's own writer."""
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset as wds

    (tmp_path / "faces").mkdir()
    for number in range(3):
        with (tmp_path / "faces" / f"{number:06d}.tar").open("wb") as file, wds.TarWriter(file) as writer:
            for key in KEYS[3 * number : 3 * number + 3]:
                writer.write({"__key__": key, "0.jpg": key.encode() * 300, "json": {"key": key}})
    return tmp_path


def test_what_webdataset_wrote_is_what_is_read_by_key(root: Path) -> None:
    import webdataset as wds

    tars = sorted(str(path) for path in (root / "faces").glob("*.tar"))
    assert len(tars) == 3
    dataset = open_tars(root, "faces")
    assert dataset.keys("train") == KEYS
    for sample in wds.WebDataset(tars, shardshuffle=False):
        for name in dataset.column("faces").names:
            assert dataset.read(sample["__key__"], "faces", name) == sample[name]


def test_the_loader_shows_every_sample_once_an_epoch(root: Path) -> None:
    dataset = open_tars(root, "faces", split="val")
    loader = SampleLoader(
        dataset, "val", lambda key, _: dataset.read(key, "faces", "0.jpg"), seed=0, batch=7, readers=2
    )
    for batch in islice(loader, 2):
        assert {loaded.key: loaded.value for loaded in batch} == {key: key.encode() * 300 for key in KEYS}
    assert loader.state.content_id == open_tars(root, "faces").info.content_id


def test_what_changes_after_the_index_is_noticed(root: Path) -> None:
    dataset = open_tars(root, "faces")
    tar = root / "faces" / "000000.tar"
    tar.write_bytes(tar.read_bytes().replace(KEYS[1].encode() * 300, KEYS[1].encode() * 299 + b"people/0xx1"))
    with pytest.raises(ShardDamagedError, match="not what was committed"):
        dataset.read(KEYS[1], "faces", "0.jpg")
    assert open_tars(root, "faces").info.content_id != dataset.info.content_id


def test_every_cut_of_a_tar_is_found_also_where_webdataset_reads_on(root: Path) -> None:
    tar = root / "faces" / "000002.tar"
    whole = tar.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for cut in range(0, end, 512):
        tar.write_bytes(whole[:cut])
        with pytest.raises(ShardDamagedError, match=r"cannot be read|without the two empty blocks"):
            index_tars(root, "faces")


def test_keys_and_names_that_make_no_column_are_named(root: Path, tmp_path: Path) -> None:
    write_tar(root / "faces" / "000003.tar", [("people/0009.0.jpg", b"")])
    with pytest.raises(
        UsageError, match=r"people/0009 in faces/000003\.tar has 0\.jpg; expected 0\.jpg, json as the others"
    ):
        index_tars(root, "faces")
    write_tar(root / "faces" / "000003.tar", [("people/0001.0.jpg", b"")])
    with pytest.raises(
        UsageError,
        match=r"000003\.tar holds people/0001\.0\.jpg, and faces/000000\.tar too; expected it once",
    ):
        index_tars(root, "faces")
    with pytest.raises(UsageError, match="has 0 tars and no file with a key"):
        index_tars(tmp_path, "nothing")
