"""Work that kills, hangs or starves its process costs itself only, and the next work is done as if nothing
had been.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.sources import sandbox
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.storage import machine
from tests.pipelines.poison import misbehave, sleep_and_count

ROOT = Path(__file__).parents[3]


def test_work_is_done_in_another_process_that_stays(tmp_path: Path) -> None:
    first = run_sandboxed(sleep_and_count, str(tmp_path), "a")
    assert first != os.getpid()
    assert run_sandboxed(sleep_and_count, str(tmp_path), "a") == first
    assert run_sandboxed(bytes, 3_000_000) == bytes(3_000_000)


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("crash", "crashed", "SIGSEGV"),
        ("abort", "crashed", "SIGABRT"),
        ("exit", "crashed", "exit status 3"),
        ("raise", "crashed", "OddError: palette index out of range in <object object at 0x> of raise {}"),
        ("endless", "timed_out", "not done after 3 s"),
        ("hog", "out_of_memory", "more than 0.5 GiB"),
    ],
)
def test_what_ends_the_process_is_named_and_the_next_work_is_done(
    how: str, reason: str, message: str
) -> None:
    run_sandboxed(misbehave, "")  # the child is up
    lost = run_sandboxed(misbehave, how, seconds=3 if how == "endless" else 60, num_bytes=1 << 29)
    assert isinstance(lost, WorkerFailure)
    assert lost.reason == reason
    assert message in lost.message
    assert run_sandboxed(misbehave, "well") == "well"


def test_an_exception_of_the_work_costs_nothing_and_what_can_be_mended_is_raised_here() -> None:
    before = run_sandboxed(os.getpid)
    with pytest.raises(UsageError, match="found this"):
        run_sandboxed(misbehave, "error")
    assert isinstance(run_sandboxed(misbehave, "raise"), WorkerFailure)
    assert run_sandboxed(os.getpid) == before


def test_work_may_take_half_of_what_a_small_machine_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert min(4 << 30, machine.memory_bytes() // 2) == sandbox.PHOTO_BYTES
    everything = machine.memory_bytes()
    for text, expected in (("2147483648\n", 2 << 30), ("max\n", None), (f"{1 << 62}\n", None)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(machine, "_ALLOWED", (tmp_path / "memory.max", tmp_path / "absent"))
        assert machine.memory_bytes() == (expected or everything)


def test_a_child_that_somebody_killed_is_replaced_and_its_work_done() -> None:
    child = run_sandboxed(os.getpid)
    os.kill(child, signal.SIGKILL)
    assert run_sandboxed(os.getpid) not in (child, os.getpid())


def test_threads_have_children_of_their_own_and_a_fork_does_not_share_one() -> None:
    mine = run_sandboxed(os.getpid)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run_sandboxed(os.getpid)))
    thread.start()
    thread.join()
    assert found[0] != mine
    forked = os.fork()
    if forked == 0:
        os._exit(0 if run_sandboxed(os.getpid) != mine else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert run_sandboxed(os.getpid) == mine


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _wait_until_gone(process: int) -> bool:
    deadline = time.monotonic() + 20
    while not _gone(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return _gone(process)


@pytest.mark.parametrize("how", ["", "endless"])
def test_a_killed_worker_leaves_no_child_behind_even_a_busy_one(how: str, tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pipelines.sources.sandbox import run_sandboxed\nfrom tests.pipelines.poison "
        "import misbehave\n"
        "print(run_sandboxed(os.getpid), flush=True)\nrun_apart(misbehave, sys.argv[1])\nsys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert worker.stdout is not None
    child = int(worker.stdout.readline())
    time.sleep(0.2)
    worker.kill()
    worker.communicate()
    assert _wait_until_gone(child)


def test_an_idle_child_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = (
        "import pipelines.sources.sandbox; pipelines.sources.sandbox._IDLE_SECONDS = 0.3; from "
        "pipelines.sources.sandbox import serve;"
    )
    monkeypatch.setattr(
        sandbox, "_SERVE", sandbox._SERVE.replace("from pipelines.sources.sandbox import serve;", hurried)
    )
    found: list[int] = []

    def ask_twice() -> None:
        found.append(run_sandboxed(os.getpid))
        _wait_until_gone(found[0])
        found.append(run_sandboxed(os.getpid))

    thread = threading.Thread(target=ask_twice)
    thread.start()
    thread.join()
    assert found[0] != found[1]


def test_a_child_that_cannot_start_is_an_error_and_not_the_photos_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_SERVE", "raise SystemExit('no such module {parent}')")
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            run_sandboxed(os.getpid)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "cannot start" in str(raised[0])
    assert "no such module" in str(raised[0])
