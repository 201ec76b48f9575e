"""kill -9 at random moments of a restoration: nothing is lost, doubled or half-written, and no byte differs.

`DIFFBFR_TEST_KILLS=50` kills that often in each test; without it a driver in one process is killed four times.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import pytest

from diffbfr.errors import IncompleteError
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.restoration import open_journal
from pipelines.restoration.segments import SEGMENTS
from tests.pipelines.auditor import audit, contents
from tests.pipelines.dot_photos import dot_detector, encoded, find_dots, photo_of_dots, whole_options
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

KILLS = int(os.environ.get("DIFFBFR_TEST_KILLS", "0"))
KINDS = ("worker", "all workers", "raylet", "driver")
_COMMAND = """
import sys
from diffbfr.errors import DiffBFRError
from tests.pipelines.flows.test_restore_killed import restore_aligned
try:
    restore_aligned(sys.argv[1], sys.argv[2], 2, 0.3)
except DiffBFRError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def album(folder: Path) -> Path:
    """Photos of none to two faces in folders, copies of some, and a text."""
    for number in range(6):
        place = folder / f"trip {number % 3}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        faces = number // 2
        place.write_bytes(encoded(photo_of_dots(number, faces, 84, 40 + 75 * faces), "PNG"))
    for number in (1, 4):
        (folder / f"copy of {number}.png").write_bytes(
            (folder / f"trip {number % 3}" / f"{number}.png").read_bytes()
        )
    (folder / "letter.png").write_bytes(b"Dear Madam")
    return folder


def restore_whole(source: str, output: str, weights: str, pause_s: float) -> None:
    """Restore whole photos in this process; three records make a segment."""
    open_journal.RECORDS_PER_SEGMENT = 3  # type: ignore[misc]
    with pytest.MonkeyPatch.context() as patch, Cluster(ClusterConfig(num_workers=0)) as cluster:
        find_dots(patch)
        options = whole_options(dot_detector(Path(weights)))
        small = RestoreOptions(False, unit_size=1, photos=options.photos, detector=options.detector)
        restore_archive(source, output, FakeModel(pause_s=pause_s), small, cluster)


def restore_aligned(source: str, output: str, num_workers: int, pause_s: float) -> None:
    """Restore crops of faces on workers."""
    open_journal.RECORDS_PER_SEGMENT = 3  # type: ignore[misc]
    with Cluster(ClusterConfig(num_workers=num_workers, cpus_per_worker=1)) as cluster:
        options = RestoreOptions(aligned=True, unit_size=1)
        restore_archive(source, output, FakeModel(pause_s=pause_s), options, cluster)


@pytest.mark.slow
def test_a_driver_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    source = album(tmp_path / "in")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__, "torch", "cv2"])

    def begin(output: Path) -> multiprocessing.process.BaseProcess:
        run = server.Process(
            target=restore_whole, args=(str(source), str(output), str(tmp_path), 0.01), daemon=True
        )
        run.start()
        return run

    calm = tmp_path / "calm"
    started = time.monotonic()
    begin(calm).join()
    duration, moments = time.monotonic() - started, random.Random(7)
    assert audit(source, calm) == []
    assert any((calm / SEGMENTS).iterdir())
    expected, deaths = contents(calm), 0
    for number in count():
        output = tmp_path / f"killed-{number}"
        run = begin(output)
        while run.exitcode is None and deaths < (KILLS or 4):
            run.join(moments.uniform(0, 1.0) * duration)
            run.kill()
            run.join()
            deaths += run.exitcode == -signal.SIGKILL
            run = begin(output) if run.exitcode else run
        run.join()
        assert (run.exitcode, audit(source, output), contents(output) == expected) == (0, [], True)
        if deaths >= (KILLS or 4):
            return


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="set DIFFBFR_TEST_KILLS to kill workers, raylets and drivers of Ray")
def test_workers_raylets_and_drivers_killed_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    source, calm = tmp_path / "in", tmp_path / "calm"
    source.mkdir()
    for number in range(30):
        (source / f"{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    (source / "twin.png").write_bytes((source / "3.png").read_bytes())
    restore_aligned(str(source), str(calm), 0, 0.0)
    assert audit(source, calm) == []
    moments, kinds, struck = random.Random(11), cycle(KINDS), Counter[str]()
    for number in count():
        output = tmp_path / f"killed-{number}"
        run = start(source, output)
        sessions = [run.pid]
        while run.poll() != 0:
            if run.returncode is not None:
                assert run.returncode in (-signal.SIGKILL, IncompleteError.exit_code), said(
                    output
                ).read_text()
                run = start(source, output)
                sessions.append(run.pid)
            if struck.total() < KILLS:
                kind = next(kinds)
                struck[kind] += strike(run, kind, moments)
            else:
                run.wait(timeout=300)
        assert audit(source, output) == [], struck
        assert contents(output) == contents(calm), struck
        print(f"{dict(struck)} in {len(sessions)} runs", flush=True)
        wait_for_end(sessions)
        if struck.total() >= KILLS:
            return


def strike(run: subprocess.Popen[bytes], kind: str, moments: random.Random) -> int:
    """Kill processes of a run at a random moment of its work; returns whether any was there.

    A driver is killed at any moment, the others while there are workers.
    """
    until = time.monotonic() + moments.uniform(0, 15)
    while run.poll() is None and (
        time.monotonic() < until if kind == "driver" else not victims(run, "all workers", moments)
    ):
        time.sleep(0.05)
    if kind != "driver":
        time.sleep(moments.uniform(0, 2))
    found = victims(run, kind, moments) if run.poll() is None else []
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if found and kind in ("raylet", "driver"):
        run.wait(timeout=300)
    return bool(found)


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    with said(output).open("ab") as messages:
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(source), str(output)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
        )


def said(output: Path) -> Path:
    """Where the runs of an output write what they say."""
    return output.with_suffix(".txt")


def wait_for_end(sessions: list[int]) -> None:
    """Wait until no process of these sessions is left; an error after a minute."""
    until = time.monotonic() + 60
    while left := [line for session in sessions for _, line in processes_of(session)]:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def victims(run: subprocess.Popen[bytes], kind: str, moments: random.Random) -> list[int]:
    """The processes of a run that are to be killed."""
    if kind == "driver":
        return [run.pid]
    mark = b"raylet/raylet" if kind == "raylet" else b"ray::Worker"
    found = [pid for pid, line in processes_of(run.pid) if mark in line]
    return found if kind != "worker" else moments.sample(found, min(1, len(found)))


def processes_of(session: int) -> Iterator[tuple[int, bytes]]:
    """The processes of a session with their command lines."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(place.name)) == session:
                yield int(place.name), (place / "cmdline").read_bytes()
