"""Objects on S3 have one row each, whatever their key and wherever they are stored; none stops a run."""

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import read_ledger, read_quarantine
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.sources import PhotoUnreadableError, open_source
from pipelines.sources.files import _holds_readable
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.faulty_s3 import Fault, faulty
from tests.pipelines.sample_archive import encode, face
from tests.pipelines.tiny_dataset import build

OPTIONS = RestoreOptions(aligned=True)
ODD_KEYS = (
    "photo.tmp",
    ".diffbfr-probe-1.png",
    f".diffbfr-probe-{'0' * 32}",
    f".a.png.{'0' * 32}.tmp",
    f".diffbfr-{'0' * 12}-{'0' * 6}-1.tmp",
    "a//b.png",
    "/c.png",
    "./x.png",
    "../x.png",
    "d/../../x.png",
    "with ? and # and %2e%2e%2f.png",
    "escape\x1b]52;c;eA==\x07.png",
    "bidi\u202egnp.jpg",
    "C:\\x\\y.png",
    f"{'家' * 200}.png",
    "é.png",
    "e\u0301.png",
    "content.png/",
)
SKIPPED = {
    "empty/": "folder_marker",
    "@eaDir/": "system_folder",
    "side.json": "side_file",
    "in.zip": "archive",
}


def put(bucket: str, key: str, data: bytes, **options: Any) -> None:
    """Write an object by its exact key, which `storage` itself would clean."""
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    client.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=data, **options)


@pytest.fixture
def place(s3_bucket: str, tmp_path: Path) -> str:
    return f"{s3_bucket}/{tmp_path.name}"


def test_each_key_is_read_and_those_that_are_no_photos_are_skipped(place: str) -> None:
    for number, key in enumerate(ODD_KEYS):
        put(place, key, f"content {number}".encode())
    put(place, "empty/", b"")
    for key in ("@eaDir/1.png", "@eaDir/2.png", "side.json", "in.zip"):
        put(place, key, b"x")
    source = open_source(place, every_file=True)
    refs = list(source.refs())
    assert [ref.name for ref in refs] == sorted(ref.name for ref in refs)
    assert {ref.name: ref.skipped for ref in refs if ref.skipped} == SKIPPED
    contents = {ref.name: source.read(ref).decode() for ref in refs if not ref.skipped}
    assert contents == {key: f"content {number}" for number, key in enumerate(ODD_KEYS)}


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_object_in_an_archive_of_s3_is_one_row(place: str, storage_class: str, tmp_path: Path) -> None:
    put(place, "a.png", encode(face(0, 24), "PNG"))
    put(place, "cold.png", b"cold", StorageClass=storage_class)
    source = open_source(place)
    warm, cold = source.refs()
    assert source.read(warm)
    with pytest.raises(PhotoUnreadableError, match=r"cold\.png cannot be read .*Glacier") as caught:
        source.read(cold)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("allowed", [1, 0])
def test_an_object_that_is_refused_is_one_row_and_a_folder_that_is_refused_is_none(
    place: str, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _holds_readable.cache_clear()
    for number in range(3):
        put(place, f"{number}.png", f"content {number}".encode())

    def choose(method: str, path: str) -> Fault | None:
        return "403" if method == "GET" and path.endswith(".png") and path[-5] >= str(allowed) else None

    with faulty(os.environ["AWS_ENDPOINT_URL"], choose) as (endpoint, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        source = open_source(place)
        for number, ref in enumerate(source.refs()):
            if number < allowed:
                assert source.read(ref) == b"content 0"
                continue
            kind = PhotoUnreadableError if allowed else UsageError
            with pytest.raises(kind, match=r"\d\.png is refused .*check credentials.*policy") as caught:
                source.read(ref)
            assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_bucket_of_odd_objects_is_restored_with_a_row_for_each(
    place: str, tmp_path: Path, serial: Cluster
) -> None:
    for number, key in enumerate(ODD_KEYS):
        put(place, key, encode(face(number, 24), "PNG"))
    put(place, "cold.png", b"cold", StorageClass="GLACIER")
    put(place, "empty/", b"")
    output = tmp_path / "out"
    report = restore_archive(place, str(output), FakeModel(), OPTIONS, serial)
    rows = {row.name: (row.status, row.reason) for row in read_ledger(report.ledger)}
    assert rows == {
        **dict.fromkeys(ODD_KEYS, ("restored", "")),
        "cold.png": ("quarantined", "unreadable"),
        "empty/": ("skipped", "folder_marker"),
    }
    written = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    assert written == {row.output for row in report.rows if row.output}
    assert not list(tmp_path.glob("x*"))
    again = restore_archive(place, str(output), FakeModel(), OPTIONS, serial)
    assert again.num_worked == 0


@pytest.mark.slow
def test_a_dataset_of_them_quarantines_what_cannot_be_read(place: str, tmp_path: Path) -> None:
    for number in range(4):
        put(place, f"{number}.png", encode(face(number, 64), "PNG"))
    put(place, "cold.png", b"cold", StorageClass="GLACIER")
    put(place, "a//b.png", encode(face(9, 64), "PNG"))
    put(place, "@eaDir/b.png", encode(face(10, 64), "PNG"))
    info = build(place, tmp_path / "data")
    assert info.num_samples == 5
    assert [(row.source, row.reason) for row in read_quarantine(tmp_path / "data")] == [
        ("cold.png", "unreadable")
    ]


def test_other_answers_about_one_object_are_rows_and_those_about_the_place_are_not(place: str) -> None:
    from pipelines.storage.s3_errors import translate_errors

    def answer(code: str, status: int) -> Exception:
        error = PermissionError(code)
        response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        error.__cause__ = type("ClientError", (Exception,), {"response": response})()
        return error

    def fail(error: Exception) -> None:
        raise error

    for code in ("InvalidObjectState", "InvalidRequest", "KMS.DisabledException", "KeyTooLongError"):
        with pytest.raises(storage.ObjectUnavailableError):
            translate_errors(place, lambda code=code: fail(answer(code, 400)))  # type: ignore[misc]
    for code in ("AccessDenied", "ExpiredToken", "SignatureDoesNotMatch"):
        with pytest.raises(ValueError, match="check credentials"):
            translate_errors(place, lambda code=code: fail(answer(code, 403)))  # type: ignore[misc]
