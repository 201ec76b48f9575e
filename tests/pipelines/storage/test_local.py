"""Files on odd file systems, and what a killed writer leaves behind."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.flows.doctor import DoctorTask, examine
from pipelines.storage import drafts, local
from pipelines.storage.drafts import draft_name, is_abandoned, is_draft

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    """Make this machine's disks such as exFAT, SMB or gcsfuse."""

    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


def _try_to_win(target: str, name: str) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        refuse_links(patch)
        won = local.write(Path(target), name.encode(), create_only=True)
        assert Path(target).read_bytes(), "whoever loses sees the content"
        return won


@pytest.mark.parametrize("number", NO_LINKS)
def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_links(monkeypatch, number)
    place = tmp_path / "lock"
    storage.check_writable(str(tmp_path))
    assert storage.write_atomic(place, b"first", create_only=True)
    assert not storage.write_atomic(place, b"second", create_only=True)
    assert place.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_another_error_of_a_link_is_no_lack_of_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_links(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        storage.write_atomic(tmp_path / "lock", b"first", create_only=True)
    assert list(tmp_path.iterdir()) == []


def test_of_many_processes_one_wins_without_hard_links(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        won = pool.starmap(_try_to_win, [(str(tmp_path / "lock"), str(i)) for i in range(40)])
    assert sum(won) == 1
    assert (tmp_path / "lock").read_text() == str(won.index(True))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_name_that_a_killed_writer_reserved_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch)
    monkeypatch.setattr(local, "_CLAIM_WAIT_S", 0.05)
    (tmp_path / "lock").touch()
    assert storage.write_atomic(tmp_path / "lock", b"second", create_only=True)
    assert (tmp_path / "lock").read_bytes() == b"second"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_still_takes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink() == tmp_path:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    assert storage.write_atomic(tmp_path / "file", b"x")


@pytest.mark.parametrize(
    ("links", "says"), [(True, "(hard links)"), (False, "(exclusive creation, no hard links)")]
)
def test_doctor_says_what_the_place_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, says: str
) -> None:
    if not links:
        refuse_links(monkeypatch)
    checks = {check.what: check for check in examine(DoctorTask(str(tmp_path / "root"))).findings}
    assert (checks["storage"].ok, says in checks["storage"].detail) == (True, True), checks["storage"]
    assert list((tmp_path / "root").iterdir()) == []


def test_only_our_own_names_are_drafts() -> None:
    assert is_draft(draft_name())
    assert is_draft(f".photo.png.{'0a' * 16}.tmp")
    assert is_draft(f".diffbfr-probe-{'0a' * 16}")
    for name in (
        "photo.tmp",
        ".diffbfr-probe-1.png",
        ".diffbfr",
        "a.diffbfr-1.tmp",
        f"{draft_name()}.png",
        ".x.tmp",
    ):
        assert not is_draft(name), name
    assert len(draft_name()) < 64


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_files_of_a_dead_process_are_abandoned_at_once_others_after_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = draft_name()
    dead = mine.replace(f"-{os.getpid()}.tmp", f"-{dead_process()}.tmp")
    now = time.time()
    monkeypatch.setattr(drafts, "_machine", lambda: "0a0a0a")
    elsewhere = dead
    monkeypatch.undo()
    assert is_abandoned(dead, now)
    assert not is_abandoned(mine, now)
    assert is_abandoned(mine, now - 3700)
    elsewhere = elsewhere.replace(
        elsewhere.split("-")[2], "ffffff" if "ffffff" not in elsewhere else "eeeeee"
    )
    assert not is_abandoned(elsewhere, now)
    assert is_abandoned(elsewhere, now - 3700)
    assert not is_abandoned(f".photo.png.{'0a' * 16}.tmp", now)
    assert is_abandoned(f".photo.png.{'0a' * 16}.tmp", now - 3700)


def test_reopening_a_folder_sweeps_what_is_ours_and_old_and_nothing_else(tmp_path: Path) -> None:
    dead = draft_name().replace(f"-{os.getpid()}.tmp", f"-{dead_process()}.tmp")
    (tmp_path / "deep/er").mkdir(parents=True)
    kept = [
        tmp_path / "photo.tmp",
        tmp_path / "deep/.x.tmp",
        tmp_path / "deep" / draft_name(),
        tmp_path / "a.png",
    ]
    swept = [tmp_path / dead, tmp_path / "deep/er" / dead]
    for path in (*kept, *swept):
        path.write_bytes(b"x")
    storage.reopen_folder(tmp_path)
    storage.reopen_folder(tmp_path / "absent")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_probes_and_drafts_on_s3_are_swept_when_they_are_old(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{s3_bucket}/sweep/{tmp_path.name}"
    dead = draft_name().replace(f"-{os.getpid()}.tmp", f"-{dead_process()}.tmp")
    for name in (dead, draft_name(), "photo.tmp"):
        storage.write_atomic(f"{root}/{name}", b"x")
    storage.reopen_folder(root)
    assert not storage.exists(f"{root}/{dead}")
    assert storage.list_dir(root) == ["photo.tmp"]


@pytest.mark.slow
def test_a_restore_killed_in_the_middle_of_any_write_leaves_nothing_after_the_next_run(
    tmp_path: Path,
) -> None:
    from tests.pipelines.sample_archive import encode, face

    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    script = (
        "import os, signal, sys\n"
        "from pipelines.cluster import Cluster, ClusterConfig\n"
        "from pipelines.flows.restore_archive import RestoreOptions, restore_archive\n"
        "from tests.pipelines.fake_cascade import FakeModel\n"
        "left, fsync = int(sys.argv[1]), os.fsync\n"
        "def die(handle):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    fsync(handle)\n"
        "os.fsync = die\n"
        f"restore_archive({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, FakeModel(), "
        "RestoreOptions(aligned=True, unit_size=1), Cluster(ClusterConfig(0)))\n"
    )

    def run(fsyncs: int) -> int:
        command = [sys.executable, "-c", script, str(fsyncs)]
        return subprocess.run(command, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL).returncode

    left = 0
    for fsyncs in (1, 5, 9, 13):
        assert run(fsyncs) == -signal.SIGKILL
        left += sum(is_draft(path.name) for path in (tmp_path / "out").rglob("*"))
    assert left >= 2, "kills fell into writes"
    assert run(10_000) == 0
    assert not [path for path in (tmp_path / "out").rglob("*") if is_draft(path.name)]
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
