"""The storage door does the same on a disk and on an S3 server (moto, on loopback)."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.storage import files, local


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "root")
        if request.param == "disk"
        else f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_what_is_written_is_read_back(root: str) -> None:
    target = storage.join(root, "a", "b.bin")
    assert not storage.exists(target)
    assert storage.write_atomic(target, b"one")
    assert storage.exists(target)
    assert (storage.read_bytes(target), storage.size(target)) == (b"one", 3)
    assert storage.write_atomic(target, b"three")
    assert storage.read_bytes(target) == b"three"
    assert storage.list_dir(storage.join(root, "a")) == ["b.bin"]
    with storage.open_read(target) as file:
        file.seek(2)
        assert file.read() == b"ree"


def test_a_file_knows_when_it_was_written(root: str) -> None:
    before = time.time()
    storage.write_atomic(storage.join(root, "a"), b"a")
    assert before - 2 < storage.modified(storage.join(root, "a")) < time.time() + 2  # S3 counts whole seconds
    with pytest.raises(FileNotFoundError):
        storage.modified(storage.join(root, "b"))


def test_an_empty_file_is_a_file(root: str) -> None:
    assert storage.write_atomic(storage.join(root, "empty"), b"")
    assert storage.read_bytes(storage.join(root, "empty")) == b""


def test_create_only_has_one_winner_and_keeps_its_bytes(root: str) -> None:
    target = storage.join(root, "lock")
    assert storage.write_atomic(target, b"first", create_only=True)
    assert not storage.write_atomic(target, b"second", create_only=True)
    assert storage.read_bytes(target) == b"first"


def test_the_server_itself_decides_create_only(s3_bucket: str) -> None:
    storage.write_atomic(f"{s3_bucket}/race", b"first")
    assert not files._write_s3(f"{s3_bucket}/race", b"second", create_only=True)


def _try_to_win(target: str, name: str) -> bool:
    return local.write(Path(target), name.encode(), create_only=True)


def test_of_many_processes_one_wins_the_link(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        won = pool.starmap(_try_to_win, [(str(tmp_path / "lock"), str(i)) for i in range(40)])
    assert sum(won) == 1
    assert storage.read_bytes(tmp_path / "lock") == str(won.index(True)).encode()
    assert _names(tmp_path) == ["lock"]


def test_a_write_that_dies_half_way_publishes_nothing_and_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    storage.write_atomic(target, b"old")

    def no_space(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        storage.write_atomic(target, b"new and longer")
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_bytes_that_read_back_wrong_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "fsync", lambda handle: os.pwrite(handle, b"r", 0)
    )  # what reaches the disk is not what was written
    with pytest.raises(storage.StorageError, match="reads back different"):
        storage.write_atomic(tmp_path / "file", b"good")
    assert _names(tmp_path) == []


def test_an_object_that_reads_back_wrong_is_removed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read_bytes", lambda uri: b"framing")
    with pytest.raises(storage.StorageError, match="reads back different"):
        storage.write_atomic(f"{s3_bucket}/rot", b"good")
    assert not storage.exists(f"{s3_bucket}/rot")


def test_a_file_that_is_rewritten_while_it_is_read_is_noticed_even_with_its_old_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looks, fstat = tmp_path / "photo.png", [], os.fstat
    path.write_bytes(b"before")
    version = storage.version(path)
    assert storage.read_version(path, version) == b"before"
    assert storage.read_version(path, version, 1, 3) == b"efo"

    def rewritten_before_the_last_look(handle: int) -> os.stat_result:
        looks.append(handle)
        if len(looks) == 3:  # the first two open the file and read its version
            times = path.stat()
            path.write_bytes(b"after!")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", rewritten_before_the_last_look)
    with pytest.raises(storage.ReplacedError, match=r"photo\.png changed while it was read"):
        storage.read_version(path, version)
    assert storage.version(path) == version


def test_a_bit_that_flips_while_a_write_is_read_back_removes_nothing(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [b"goob", b"good"]
    monkeypatch.setattr(files, "read_bytes", lambda uri: answers.pop(0))
    assert storage.write_atomic(f"{s3_bucket}/read-back", b"good")
    assert storage.exists(f"{s3_bucket}/read-back")


def test_files_being_written_are_invisible(tmp_path: Path) -> None:
    local.draft(tmp_path / "x").write_bytes(b"half")
    storage.write_atomic(tmp_path / "y", b"whole")
    assert storage.list_dir(tmp_path) == ["y"]
    assert [entry.path for entry in storage.walk(tmp_path)] == ["y"]


def test_json_round_trip_keeps_unicode(root: str) -> None:
    storage.write_json(storage.join(root, "x.json"), {"b": [1, 2.5, None], "a": "Grüße"})
    assert storage.read_json(storage.join(root, "x.json")) == {"a": "Grüße", "b": [1, 2.5, None]}


def test_a_tree_goes_up_and_comes_down_whole(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("z.bin", "deep/er/a.bin", "naïve.bin"):
        storage.write_atomic(source / name, name.encode() * 100)
    storage.put_tree(source, root)
    there = {entry.path: entry.num_bytes for entry in storage.walk(root)}
    assert there == {name: 100 * len(name.encode()) for name in ("deep/er/a.bin", "naïve.bin", "z.bin")}
    fetched = storage.fetch_tree(root, tmp_path / "cache")
    assert {entry.path: (fetched / entry.path).read_bytes() for entry in storage.walk(fetched)} == {
        name: name.encode() * 100 for name in there
    }
    if not storage.is_remote(root):
        assert fetched == Path(root)
    storage.remove_tree(root)
    assert not storage.exists(storage.join(root, "z.bin"))
    storage.remove_tree(root)


def test_a_fetched_tree_follows_changes_and_fetches_nothing_twice(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{s3_bucket}/follow"
    storage.write_atomic(f"{root}/same", b"same")
    storage.write_atomic(f"{root}/changes", b"old!")
    fetched = storage.fetch_tree(root, tmp_path)
    untouched = (fetched / "same").stat().st_mtime_ns
    storage.write_atomic(f"{root}/changes", b"new!")
    storage.write_atomic(f"{root}/added/column", b"more")
    assert storage.fetch_tree(root, tmp_path) == fetched
    assert (fetched / "changes").read_bytes() == b"new!"
    assert (fetched / "added" / "column").read_bytes() == b"more"
    assert (fetched / "same").stat().st_mtime_ns == untouched


def test_a_tree_that_is_not_there_says_so(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.fetch_tree(f"{s3_bucket}/nothing-here", tmp_path)


def test_walk_does_not_leak_into_a_sibling_with_the_same_beginning(root: str) -> None:
    storage.write_atomic(storage.join(root, "run", "a"), b"1")
    storage.write_atomic(storage.join(root, "run-2", "b"), b"2")
    assert [entry.path for entry in storage.walk(storage.join(root, "run"))] == ["a"]
    assert storage.list_dir(root) == ["run", "run-2"]
    assert storage.list_dir(storage.join(root, "absent")) == []


def test_a_writable_place_stays_clean_after_the_check(root: str) -> None:
    storage.check_writable(root)
    assert storage.list_dir(root) == []


def test_an_unwritable_root_is_one_clear_line(tmp_path: Path, s3_bucket: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (str(tmp_path / "file" / "root"), "s3://no-such-bucket/root"):
        with pytest.raises(UsageError, match="cannot write to") as caught:
            storage.check_writable(place)
        assert "\n" not in str(caught.value)
        assert place in str(caught.value)


def test_file_uris_are_paths_and_other_schemes_are_refused(tmp_path: Path) -> None:
    assert storage.local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    with pytest.raises(UsageError, match="gs://"):
        storage.local_path("gs://bucket/x")


def test_absolute_names_do_not_depend_on_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
