"""Pipes, sockets, devices and loops of links among the inputs are one row each, and nothing waits for them."""

import contextlib
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from diffbfr.shards.external_tars import index_tars
from diffbfr.shards.schema import ShardDamagedError
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.sources import PhotoUnreadableError, open_source
from tests.pipelines.deadline import deadline
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face


def _socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as end:  # its path may have 107 bytes
        end.bind(path.name)


def _two_links(path: Path) -> None:
    other = path.with_name("other link")
    path.symlink_to(other)
    other.symlink_to(path)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}
OPTIONS = RestoreOptions(aligned=True)


def make(path: Path, kind: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    SPECIAL[kind](path)
    return path


@pytest.mark.slow
def test_among_photos_each_is_a_row_and_the_photos_are_restored(tmp_path: Path, serial: Cluster) -> None:
    for kind in SPECIAL:
        make(tmp_path / "photos" / f"{kind}.png", kind)
    _two_links(tmp_path / "photos" / "two links.png")
    (tmp_path / "photos" / "a.png").write_bytes(encode(face(0, 24), "PNG"))
    with deadline(60):
        report = restore_archive(
            str(tmp_path / "photos"), str(tmp_path / "out"), FakeModel(), OPTIONS, serial
        )
    rows = {row.name: row for row in report.rows}
    assert rows.pop("a.png").status == "restored"
    assert sorted(rows) == sorted([*(f"{kind}.png" for kind in SPECIAL), "two links.png", "other link"])
    assert {(row.status, row.reason) for row in rows.values()} == {("quarantined", "unreadable")}
    for kind, words in (("pipe", "a named pipe"), ("socket", "a socket"), ("endless device", "a device")):
        assert f"it is {words}, no regular file" in rows[f"{kind}.png"].message
    with deadline(60):
        again = restore_archive(str(tmp_path / "photos"), str(tmp_path / "out"), FakeModel(), OPTIONS, serial)
    assert again.num_worked == 0


@pytest.mark.parametrize("name", ["a.png", "a.zip", "a.tar", "a"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_as_the_input_itself_it_is_one_line(tmp_path: Path, kind: str, name: str) -> None:
    path = make(tmp_path / name, kind)
    with deadline(), pytest.raises(UsageError) as caught:
        open_source(path)
    assert "expected a folder, a zip, a tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    with deadline(), pytest.raises(UsageError):
        open_source(f"file://{path}")


@pytest.mark.parametrize("kind", SPECIAL)
def test_as_the_index_of_published_checksums_it_is_none(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "photos" / "ffhq-dataset-v2.json", kind)
    (tmp_path / "photos" / "a.png").write_bytes(b"photo")
    with deadline():
        source = open_source(tmp_path / "photos")
        assert [(ref.name, source.read(ref)) for ref in source.refs()] == [("a.png", b"photo")]


@pytest.mark.parametrize("kind", ["pipe", "socket", "endless device"])
@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_among_archives_it_is_one_row(tmp_path: Path, kind: str, suffix: str) -> None:
    make(tmp_path / f"b.{suffix}", kind)
    for stem in ("a", "c"):
        with zipfile.ZipFile(tmp_path / f"{stem}.zip", "w") as archive:
            archive.writestr("1.png", stem)
    with deadline():
        source = open_source(tmp_path / "?.*", every_file=True)
        first, special, last = source.refs()
        assert [ref.name for ref in (first, special, last)] == ["a/1.png", "b/", "c/1.png"]
        assert (source.read(first), source.read(last)) == (b"a", b"c")
        with pytest.raises(PhotoUnreadableError, match=r"b\.\w+ is a .*; expected an archive of photos"):
            source.read(special)


@pytest.mark.parametrize("kind", ["pipe", "endless device"])
def test_as_a_shard_or_a_record_it_is_refused(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "column" / "0.tar", kind)
    with deadline(), pytest.raises(ShardDamagedError, match="no regular file"):
        index_tars(tmp_path, "column")
    record = make(tmp_path / "record.json", kind)
    for read in (storage.read_json, storage.read_bytes, storage.digest, storage.open_read):
        with deadline(), pytest.raises(OSError, match="no regular file"):
            read(record)


def test_a_folder_that_contains_itself_is_entered_once(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"one")
    (folder / "up").symlink_to(tmp_path / "photos")
    (folder / "here").symlink_to(".")
    with deadline():
        assert [ref.name for ref in open_source(tmp_path / "photos").refs()] == ["a/1.png"]


@pytest.mark.slow
def test_folders_deeper_than_python_calls_itself_are_listed(tmp_path: Path) -> None:
    depth = 1300
    folders = [tmp_path / ("d/" * level) for level in range(1, depth + 1)]
    for folder in folders:
        folder.mkdir()
    photo = folders[-1] / "1.png"
    photo.write_bytes(b"deep")
    try:
        with deadline():
            assert [ref.name for ref in open_source(tmp_path).refs()] == ["d/" * depth + "1.png"]
    finally:  # pytest would call itself as deeply to remove them
        photo.unlink()
        for folder in reversed(folders):
            folder.rmdir()
