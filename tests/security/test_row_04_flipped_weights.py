"""A bit of the weights that flips, on the way from S3 or in the cache, reaches no network."""

import os
from pathlib import Path

import pytest

from diffbfr.cascade import cascade_digest, packaged_cascade
from pipelines import storage
from pipelines.execution.model_ref import pin_model
from pipelines.storage import s3
from tests.pipelines.faulty_s3 import faulty


@pytest.fixture
def model(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    uri = f"{s3_bucket}/weights/{tmp_path.name}"
    storage.put_tree(packaged_cascade(), uri)
    return uri


@pytest.mark.parametrize("in_parts", [False, True], ids=["md5", "no-md5"])
def test_a_bit_flipped_on_the_way_is_noticed_and_the_file_is_read_again(
    model: str, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    if in_parts:
        monkeypatch.setattr(s3, "_MD5", s3.re.compile("no ETag is an MD5"))
    flipped: list[str] = []

    def flip_the_first(method: str, path: str) -> "str | None":
        if method == "GET" and path.partition("?")[0].endswith("irm2.safetensors") and not flipped:
            flipped.append(path)
            return "flip"
        return None

    with faulty(os.environ["AWS_ENDPOINT_URL"], flip_the_first) as (endpoint, made):  # type: ignore[arg-type]
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        pinned = pin_model(model)
    assert flipped
    assert made
    assert pinned.digest == cascade_digest(packaged_cascade())


@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_cached_file_that_does_not_fit_is_fetched_again(model: str, tmp_path: Path, damage: str) -> None:
    pinned = pin_model(model)
    cached = next(path for path in (tmp_path / "cache").rglob("irm2.safetensors"))
    whole = bytearray(cached.read_bytes())
    times = cached.stat()
    if damage == "flip":
        whole[len(whole) // 2] ^= 1
        cached.write_bytes(whole)
    elif damage == "cut":
        cached.write_bytes(whole[:-1])
    else:
        cached.write_bytes(cached.with_name("tem.safetensors").read_bytes())
    os.utime(cached, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert pin_model(model) == pinned
    assert pinned.load().digest == pinned.digest
    assert cached.read_bytes() == (packaged_cascade() / "irm2.safetensors").read_bytes()


def test_a_cache_record_that_is_cut_costs_a_new_fetch_and_no_error(model: str, tmp_path: Path) -> None:
    pinned = pin_model(model)
    (record,) = (tmp_path / "cache" / "cascades").glob("*.json")
    record.write_bytes(record.read_bytes()[:20])

    assert pin_model(model) == pinned


def test_unchanged_weights_are_not_fetched_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin_model(model)
    monkeypatch.setattr(s3, "fetch", lambda *arguments: pytest.fail("nothing has changed"))
    pin_model(model)
