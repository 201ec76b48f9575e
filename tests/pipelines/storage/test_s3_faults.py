"""Photos and shards on an S3 that refuses, resets, cuts, dawdles and alters: the dataset is the same, or a
photo is quarantined.
"""

import base64
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
from fsspec.asyn import get_loop

from diffbfr.errors import IncompleteError, UsageError
from pipelines import storage
from pipelines.cluster import Cluster, pool
from pipelines.dataset.manifest import open_dataset, read_quarantine
from pipelines.dataset.verify import plan_verification, verify_shard
from pipelines.dataset.verify_records import verify_records
from pipelines.sources import PhotoUnreadableError, archive, open_source, tar
from pipelines.steps.shard import finish_dataset, plan_shards, shard
from pipelines.storage import s3
from tests.pipelines.faulty_s3 import IMPATIENT_S, Chooser, Fault, faulty, now_and_then
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos

StepOutput = list[tuple[Fault, str, str]]
KINDS = ("folder", "zip", "tar", "parts")
FAULTS: tuple[Fault, ...] = ("503", "reset", "truncated", "slow", "stall", "flip")


@pytest.fixture
def through(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Chooser], StepOutput]]:
    """Put a faulty proxy before the server; returns the faults that it makes."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(choose: Chooser) -> StepOutput:
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


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up soon, and archives that are fetched in small pieces."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", IMPATIENT_S)
    monkeypatch.setattr(s3, "_PAUSE_S", 0.01)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 3)
    monkeypatch.setattr(archive, "_BLOCK_BYTES", 4096)
    monkeypatch.setattr(tar, "_HEADER_BYTES", 4096)
    monkeypatch.setattr(pool, "BACKOFF_S", (0.0,))


def _upload(folder: Path, uri: str, kind: str) -> str:
    """Put photos on S3 as a folder, as objects that came in parts, as a zip or as a tar; returns where
    they are.
    """
    if kind == "folder":
        storage.put_tree(folder, uri)
    elif kind == "parts":
        for entry in storage.walk(folder):
            _put_in_parts(storage.join(uri, entry.path), (folder / entry.path).read_bytes())
    else:
        packed = Path(shutil.make_archive(str(folder.parent / "packed"), kind, folder))
        uri += f".{kind}"
        storage.write_atomic(uri, packed.read_bytes())
    return uri


def _put_in_parts(uri: str, data: bytes) -> None:
    call, place = s3.connect().call_s3, s3.place_of(uri)
    upload = {**place, "UploadId": call("create_multipart_upload", **place)["UploadId"]}
    part = {"PartNumber": 1, "ETag": call("upload_part", **upload, PartNumber=1, Body=data)["ETag"]}
    call("complete_multipart_upload", **upload, MultipartUpload={"Parts": [part]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_photos_come_whole_through_every_fault(
    kind: str, tmp_path: Path, s3_bucket: str, hurried: None, through: Callable[[Chooser], StepOutput]
) -> None:
    folder = make_photos(tmp_path / "photos", 9)
    expected = build(folder, tmp_path / "local")
    uri = _upload(folder, f"{s3_bucket}/through-{tmp_path.name}", kind)
    made = through(now_and_then(1, 0.6, FAULTS))
    info = build(uri, tmp_path / "data")
    assert (info.content_id, info.num_samples, info.num_quarantined) == (expected.content_id, 9, 0)
    assert {fault for fault, _, _ in made} == set(FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_gone_quarantines_nothing_and_the_same_command_goes_on(
    kind: str,
    tmp_path: Path,
    s3_bucket: str,
    hurried: None,
    serial: Cluster,
    through: Callable[[Chooser], StepOutput],
) -> None:
    folder, gone = make_photos(tmp_path / "photos"), [False]
    uri = _upload(folder, f"{s3_bucket}/gone-{tmp_path.name}", kind)
    through(lambda method, path: "truncated" if gone[0] and method == "GET" else None)
    tasks = plan_shards(open_source(uri), CONFIG, str(tmp_path / "data"))
    gone[0] = True
    archive._opened.cache_clear()
    with pytest.raises(
        IncompleteError, match=r"shard: 3 of 3 tasks failed .*TransportError: .* did not answer as it should"
    ) as caught:
        serial.map(shard, tasks, label="shard")
    assert "\n" not in str(caught.value)
    with pytest.raises(storage.TransportError, match="run the same command again"):
        list(open_source(uri).refs())
    gone[0] = False
    serial.map(shard, tasks, label="shard")
    info = finish_dataset(str(tmp_path / "data"), tasks)
    assert (info.num_samples, info.num_quarantined) == (12, 0)


@pytest.mark.parametrize("kind", ["zip", "tar", "parts"])
def test_bytes_that_never_come_twice_alike_are_the_networks_fault(
    kind: str, tmp_path: Path, s3_bucket: str, hurried: None, through: Callable[[Chooser], StepOutput]
) -> None:
    uri = _upload(make_photos(tmp_path / "photos", 2), f"{s3_bucket}/alike-{tmp_path.name}", kind)
    source = open_source(uri)
    ref = next(source.refs())
    through(lambda method, path: "flip" if method == "GET" else None)
    archive._opened.cache_clear()
    with pytest.raises(storage.TransportError, match="each time with other bytes"):
        source.read(ref)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_by_as_many_bytes_is_noticed(kind: str, tmp_path: Path, s3_bucket: str) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    uri = _upload(folder, f"{s3_bucket}/replaced-{tmp_path.name}", kind)
    source = open_source(uri)
    refs = list(source.refs())
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    _upload(folder, f"{s3_bucket}/replaced-{tmp_path.name}", kind)
    assert [ref.bytes for ref in open_source(uri).refs()] == [ref.bytes for ref in refs]
    for ref in refs:
        with pytest.raises(PhotoUnreadableError, match=r"changed .*after it was listed"):
            source.read(ref)


@pytest.mark.slow
def test_refusals_resets_and_cut_or_slow_bodies_change_nothing(
    photos: str,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    through: Callable[[Chooser], StepOutput],
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    expected = build(tmp_path / "photos", tmp_path / "local")
    made = through(now_and_then(0, 0.15, ("503", "reset", "truncated", "slow")))
    root = f"{s3_bucket}/faulty-data-{tmp_path.name}"
    info = build(photos, root)
    assert (info.content_id, info.archive_id) == (expected.content_id, expected.archive_id)
    dataset, local = open_dataset(root), open_dataset(tmp_path / "local")
    for sample in local.samples:
        for column in local.columns:
            for name in column.names:
                assert dataset.read(sample.key, column.column, name) == local.read(
                    sample.key, column.column, name
                )
    assert verify_records(root) == []
    assert [found for task in plan_verification(root, 4) for found in verify_shard(task).problems] == []
    assert {fault for fault, _, _ in made} == {"503", "reset", "truncated", "slow"}


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_is_still_one_commit(
    photos: str, s3_bucket: str, tmp_path: Path, through: Callable[[Chooser], StepOutput]
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
    photos: str, tmp_path: Path, through: Callable[[Chooser], StepOutput]
) -> None:
    made = through(_flip_in("00007.png", 1))
    info = build(photos, tmp_path / "data")
    assert info.content_id == build(tmp_path / "photos", tmp_path / "local").content_id
    assert len(made) == 1


def test_a_photo_that_comes_altered_again_is_quarantined_and_only_that(
    photos: str, tmp_path: Path, through: Callable[[Chooser], StepOutput]
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
    s3_bucket: str, tmp_path: Path, through: Callable[[Chooser], StepOutput]
) -> None:
    through(_flip_in("altered.bin", 99, "flip-put"))
    with pytest.raises((storage.StorageError, OSError)):
        storage.write_atomic(f"{s3_bucket}/altered.bin", bytes(1000))
    assert not storage.exists(f"{s3_bucket}/altered.bin")


@pytest.mark.parametrize(
    ("etag", "answer", "how"),
    [
        ("9dd4e461268c8034f5c8564e155c67a6", {}, "once"),
        ("0" * 32, {}, "refused"),
        ("0" * 32, {"ServerSideEncryption": "AES256"}, "refused"),
        ("0" * 32, {"ServerSideEncryption": "aws:kms"}, "twice"),
        ("0" * 32, {"SSECustomerAlgorithm": "AES256"}, "twice"),
        (f"{'0' * 32}-2", {}, "twice"),
    ],
)
def test_an_etag_that_is_no_md5_proves_nothing_so_the_object_is_read_twice(
    etag: str, answer: dict[str, str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "read_once", lambda client, uri, etag: b"x")
    monkeypatch.setattr(s3, "read_verified", lambda client, uri, etag: b"agreed")
    client = s3.Client(type("Files", (), {"call_s3": staticmethod(lambda method, **options: answer)}))
    if how == "refused":
        with pytest.raises(storage.ReplacedError, match="other bytes than its ETag"):
            s3.read_whole(client, "s3://bucket/a.png", etag)
    else:
        assert s3.read_whole(client, "s3://bucket/a.png", etag) == {"once": b"x", "twice": b"agreed"}[how]


class _Server:
    """An S3 client whose objects came in parts; it counts its answers and alters the first `num_altered`."""

    def __init__(self, data: bytes, checksum: dict[str, str], num_altered: int = 0) -> None:
        self.loop = get_loop()
        self.asked: list[dict[str, str]] = []
        self._data = data
        self._checksum = checksum
        self._num_altered = num_altered

    async def set_session(self) -> None:
        pass

    async def get_s3(self, bucket: str) -> "_Server":
        return self

    async def get_object(self, **options: str) -> dict[str, object]:
        self.asked.append(options)
        body = self._data[:-1] + b"!" if len(self.asked) <= self._num_altered else self._data
        checksum = self._checksum if options.get("ChecksumMode") == "ENABLED" else {}
        return {"ETag": PARTS_ETAG, "Body": _Stream(body), **checksum}


class _Stream(io.BytesIO):
    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:  # type: ignore[override]
        return self.getvalue()


PARTS_ETAG = f"{'0' * 32}-2"
PHOTO = b"the bytes of a photo"
SHA256 = base64.b64encode(hashlib.sha256(PHOTO).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(PHOTO).to_bytes(4, "big")).decode()


@pytest.mark.parametrize(
    ("checksum", "num_altered", "num_answers"),
    [
        ({"ChecksumSHA256": SHA256}, 0, 1),
        ({"ChecksumCRC32": CRC32}, 0, 1),
        ({"ChecksumSHA256": SHA256}, 2, 3),
        ({"ChecksumSHA256": f"{SHA256}-2"}, 0, 2),
        ({"ChecksumCRC64NVME": "AAAAAAAAAAA="}, 0, 2),
        ({}, 0, 2),
        ({}, 1, 3),
    ],
)
def test_a_whole_object_is_read_twice_only_where_the_server_sends_no_checksum(
    checksum: dict[str, str], num_altered: int, num_answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAUSE_S", 0.0)
    server = _Server(PHOTO, checksum, num_altered)
    assert s3.read_whole(s3.Client(server), "s3://bucket/a.png", PARTS_ETAG) == PHOTO
    assert len(server.asked) == num_answers


def test_bytes_that_never_have_their_checksum_are_the_networks_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAUSE_S", 0.0)
    server = _Server(PHOTO, {"ChecksumSHA256": SHA256}, num_altered=99)
    with pytest.raises(storage.TransportError, match="do not have the ChecksumSHA256"):
        s3.read_whole(s3.Client(server), "s3://bucket/a.png", PARTS_ETAG)


@pytest.mark.parametrize(("setting", "num_answers"), [(None, 2), ("1", 2), ("0", 1)])
def test_the_second_reading_can_be_turned_off(
    setting: str | None, num_answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is None:
        monkeypatch.delenv(s3.READ_TWICE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(s3.READ_TWICE_VARIABLE, setting)
    pages: list[object] = []

    def list_page(method: str, **options: object) -> dict[str, object]:
        pages.append(method)
        return {"Contents": [{"Key": "a.png", "Size": 1, "ETag": "x"}]}

    server = _Server(PHOTO, {})
    assert s3.read_verified(s3.Client(server), "s3://bucket/a.tar", PARTS_ETAG, 0, len(PHOTO)) == PHOTO
    lister = s3.Client(type("Files", (), {"call_s3": staticmethod(list_page)}))
    assert list(s3.list_keys(lister, "bucket", "")) == [("a.png", 1, "x")]
    assert (len(server.asked), len(pages)) == (num_answers, num_answers)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar"])
def test_a_cut_archive_on_s3_is_one_clear_line(name: str, s3_bucket: str, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "photos"), name[-3:], make_photos(tmp_path / "photos", 2))
    storage.write_atomic(f"{s3_bucket}/cut/{name}", (tmp_path / name).read_bytes()[:3000])
    with pytest.raises(UsageError, match="expected a whole") as caught:
        list(open_source(f"{s3_bucket}/cut/{name}").refs())
    assert "\n" not in str(caught.value)


def test_a_tree_that_comes_altered_is_not_sealed(
    s3_bucket: str, tmp_path: Path, through: Callable[[Chooser], StepOutput]
) -> None:
    """Its files are read back, in order, and the seal is last: what reads back different ends the copy,
    and is removed.
    """
    for name in ("MANIFEST.json", "a.bin", "b.bin", "z.bin"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    puts: list[str] = []

    def alter(method: str, path: str) -> Fault | None:
        if method == "PUT":
            puts.append(path.rsplit("/", 1)[1])
        return (
            "flip-put"
            if method == "PUT" and "tree-corrupt_error" in path and path.endswith("b.bin")
            else None
        )

    through(alter)
    storage.put_tree(tmp_path, f"{s3_bucket}/tree-{tmp_path.name}", last="MANIFEST.json")
    assert puts == ["a.bin", "b.bin", "z.bin", "MANIFEST.json"]
    altered = f"{s3_bucket}/tree-corrupt_error-{tmp_path.name}"
    with pytest.raises(storage.StorageError, match=r"b\.bin reads back different"):
        storage.put_tree(tmp_path, altered, last="MANIFEST.json")
    assert storage.list_dir(altered) == ["a.bin"]
