"""Photos and shards on an S3 that refuses, resets, cuts, dawdles and alters: the dataset is the same, or a photo is quarantined."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.manifest import open_dataset, read_quarantine
from pipelines.sources import PhotoUnreadableError, open_source
from pipelines.steps.verify import plan_verification, verify_records, verify_shard
from tests.pipelines.faulty_s3 import Chooser, Fault, faulty, now_and_then
from tests.pipelines.tiny_dataset import build, make_photos

Made = list[tuple[Fault, str, str]]


@pytest.fixture
def through(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Chooser], Made]]:
    """Put a faulty proxy before the server; returns the faults that it makes."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(choose: Chooser) -> Made:
            endpoint, made = stack.enter_context(faulty(os.environ["AWS_ENDPOINT_URL"], choose))
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            return made

        yield start


@pytest.fixture
def photos(tmp_path: Path, s3_bucket: str) -> str:
    """Twelve photos on S3."""
    uri = f"{s3_bucket}/faulty/{tmp_path.name}"
    storage.put_tree(make_photos(tmp_path / "photos"), uri)
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_refusals_resets_and_cut_or_slow_bodies_change_nothing(
    photos: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: Callable[[Chooser], Made], seed: int
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    expected = build(tmp_path / "photos", tmp_path / "local")
    made = through(now_and_then(seed, 0.15, ("503", "reset", "truncated", "slow")))
    root = f"{s3_bucket}/faulty-data-{tmp_path.name}"
    info = build(photos, root)
    assert (info.content_id, info.archive_id) == (expected.content_id, expected.archive_id)
    dataset, local = open_dataset(root), open_dataset(tmp_path / "local")
    for sample in local.samples:
        for column in local.columns:
            for name in column.names:
                assert dataset.read(sample.key, column.column, name) == local.read(sample.key, column.column, name)
    assert verify_records(root) == []
    assert [found for task in plan_verification(root, 4) for found in verify_shard(task).findings] == []
    assert {fault for fault, _, _ in made} == {"503", "reset", "truncated", "slow"}


def test_a_commit_whose_answer_was_lost_is_still_one_commit(
    photos: str, s3_bucket: str, tmp_path: Path, through: Callable[[Chooser], Made]
) -> None:
    lost: list[str] = []

    def lose_first_answers(method: str, path: str) -> Fault | None:
        if method == "PUT" and "/commits/" in path and path not in lost:
            lost.append(path)
            return "lost-answer"
        return None

    made = through(lose_first_answers)
    root = f"{s3_bucket}/lost-{tmp_path.name}"
    info = build(photos, root)
    assert info == replace(build(tmp_path / "photos", tmp_path / "local"), source=photos)
    assert len(made) == 3


def _flip_in(name: str, times: int, fault: Fault = "flip") -> Chooser:
    left = [times]

    def choose(method: str, path: str) -> Fault | None:
        if name in path and method == ("PUT" if fault == "flip-put" else "GET") and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return choose


def test_a_bit_that_flips_on_the_way_is_noticed_and_the_photo_read_again(
    photos: str, tmp_path: Path, through: Callable[[Chooser], Made]
) -> None:
    made = through(_flip_in("00007.png", 1))
    info = build(photos, tmp_path / "data")
    assert info.content_id == build(tmp_path / "photos", tmp_path / "local").content_id
    assert len(made) == 1


def test_a_photo_that_comes_altered_again_is_quarantined_and_only_that(
    photos: str, tmp_path: Path, through: Callable[[Chooser], Made]
) -> None:
    made = through(_flip_in("00007.png", 99))
    info = build(photos, tmp_path / "data")
    (row,) = read_quarantine(tmp_path / "data")
    assert (row.source, row.stage, row.reason) == ("01000/00007.png", "read", "unreadable")
    assert "came 2 times with other bytes than its ETag" in row.message
    assert (info.num_samples, info.num_quarantined, len(made)) == (11, 1, 2)
    build(tmp_path / "photos", tmp_path / "local")
    dataset, local = open_dataset(tmp_path / "data"), open_dataset(tmp_path / "local")
    for sample in dataset.samples:
        assert dataset.lq_bytes(sample.key, 1) == local.lq_bytes(sample.key, 1)


def test_an_object_that_is_altered_while_it_is_written_is_not_published(
    s3_bucket: str, tmp_path: Path, through: Callable[[Chooser], Made]
) -> None:
    through(_flip_in("altered.bin", 99, "flip-put"))
    with pytest.raises((storage.StorageError, OSError)):
        storage.write_atomic(f"{s3_bucket}/altered.bin", bytes(1000))
    assert not storage.exists(f"{s3_bucket}/altered.bin")


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ({}, False),
        ({"ServerSideEncryption": "AES256"}, False),
        ({"ServerSideEncryption": "aws:kms"}, True),
        ({"SSECustomerAlgorithm": "AES256"}, True),
    ],
)
def test_an_etag_that_is_no_md5_proves_nothing(answer: dict[str, str], content: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def call_s3(method: str, **options: object) -> dict[str, str]:
        asked.append((method, options))
        return answer

    monkeypatch.setattr(storage, "_s3", lambda: type("Client", (), {"call_s3": staticmethod(call_s3)}))
    assert storage.is_content("s3://bucket/a/b.png", "0" * 32, b"x") is content
    assert asked == [("head_object", {"Bucket": "bucket", "Key": "a/b.png"})]
    assert storage.is_content("s3://bucket/a/b.png", f"{'0' * 32}-2", b"x")
    assert storage.is_content("s3://bucket/a/b.png", "9dd4e461268c8034f5c8564e155c67a6", b"x")
    assert len(asked) == 1


def test_a_photo_that_was_replaced_after_it_was_listed_is_not_read(photos: str) -> None:
    source = open_source(photos)
    ref = next(ref for ref in source.refs() if ref.name.endswith("00003.png"))
    storage.write_atomic(ref.uri, b"x" * ref.bytes)
    with pytest.raises(PhotoUnreadableError, match="other bytes than its ETag"):
        source.read(ref)
