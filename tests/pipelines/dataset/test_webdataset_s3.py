"""A dataset on S3 as a webdataset pipeline gives what the one on disk gives."""

from pathlib import Path

import pytest

from diffbfr.shards import ShardDamagedError
from diffbfr.shards.webdataset import webdataset_pipeline
from pipelines import storage
from pipelines.dataset.manifest import open_dataset
from tests.pipelines.tiny_dataset import make_dataset


def test_a_dataset_on_s3_streams_like_one_on_disk(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    local = make_dataset(tmp_path)
    uri = f"{s3_bucket}/{tmp_path.name}"
    storage.put_tree(local, uri)
    expected = list(webdataset_pipeline(open_dataset(local), ["lq", "hq8"]))
    assert len(expected) == 12
    assert list(webdataset_pipeline(open_dataset(uri), ["lq", "hq8"])) == expected

    cached = next((tmp_path / "cache/shards").glob("*.tar"))
    cached.write_bytes(cached.read_bytes()[:1024])
    assert list(webdataset_pipeline(open_dataset(uri), ["lq", "hq8"])) == expected, (
        "a damaged copy is fetched anew"
    )

    tar = storage.join(uri, "hq8/000001.tar")
    storage.write_atomic(tar, storage.read_bytes(tar)[:1024])
    for copy in (tmp_path / "cache/shards").glob("*.tar"):
        copy.unlink()
    with pytest.raises(ShardDamagedError, match=r"hq8/000001\.tar"):
        list(webdataset_pipeline(open_dataset(uri), ["lq", "hq8"]))
