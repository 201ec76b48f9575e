"""A bucket with hostile keys beside a model writes nothing outside the cache, and only a model's files in it."""

import os
from pathlib import Path

import boto3
import pytest

from diffbfr.cascade import packaged_cascade
from diffbfr.digests import is_model_file
from pipelines import storage
from pipelines.execution.model_ref import pin_model
from pipelines.storage import UnsafePlaceError, check_key

PAYLOAD = b"payload"
KEYS = (
    "../../../escaped.txt",
    "../escaped.txt",
    "weights/../../escaped.txt",
    "/escaped.txt",
    "a//escaped.txt",
    "./escaped.txt",
    "..\\escaped.txt",
    "C:\\escaped.txt",
    "irm1.json/../../escaped.txt",
    "..",
)


def put(bucket: str, key: str, data: bytes = PAYLOAD) -> None:
    """Write an object by its exact key, which `storage` itself would clean."""
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=data)


@pytest.fixture
def model(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cascade on S3, with the cache three folders deep."""
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "home" / "user" / "cache"))
    uri = f"{s3_bucket}/models/{tmp_path.name}"
    storage.put_tree(packaged_cascade(), uri)
    return uri


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_leads_out_of_its_folder_is_refused_before_anything_is_written(
    key: str, model: str, s3_bucket: str, tmp_path: Path
) -> None:
    put(s3_bucket, f"{model.removeprefix(f'{s3_bucket}/')}/{key}")

    with pytest.raises(UnsafePlaceError, match=r"which is no path inside a folder; expected .*; remove it"):
        pin_model(model)
    assert files(tmp_path) == []


def test_only_the_files_of_a_cascade_are_fetched(model: str, tmp_path: Path) -> None:
    for name in ("evil.py", "MLmodel", "irm1.safetensors.bak", "deep/irm1.json", ".bashrc", "irm1.pkl"):
        storage.write_atomic(f"{model}/{name}", PAYLOAD)
    pin_model(model)

    wanted = {path.name for path in packaged_cascade().iterdir() if is_model_file(path.name)}
    fetched = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and len(path.parts)]
    assert {path.name for path in fetched if path.parent.parent.name == "cascades"} == wanted
    assert not any(path.read_bytes() == PAYLOAD for path in fetched)


def test_a_link_in_the_cache_is_not_written_through(model: str, tmp_path: Path) -> None:
    pin_model(model)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    cached = next((tmp_path / "home").rglob("irm1.json"))
    cached.unlink()
    cached.symlink_to(victim)

    with pytest.raises(UnsafePlaceError, match="is a link"):
        pin_model(model)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "key", ["irm1.json", "step-00000001/state.json", "naïve name.bin", "..hidden", "a..b"]
)
def test_plain_keys_pass(key: str) -> None:
    check_key(key, "s3://bucket/model")
