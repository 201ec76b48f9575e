"""A call that kills, hangs or starves its process costs only itself; the next call runs as usual."""

import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from diffbfr.errors import DiffBFRError, UsageError
from diffbfr.images import ImageRefused
from diffbfr.shards.schema import ShardDamagedError
from pipelines.sources import sandbox
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.sources.sandbox_protocol import encode_answer
from pipelines.storage import machine
from tests.pipelines.poison import Values, echo, misbehave, raise_again, sleep_and_count

T = TypeVar("T")

ROOT = Path(__file__).parents[3]


def _child_pid() -> int:
    pid = run_sandboxed(os.getpid, returns=int)
    assert isinstance(pid, int)
    return pid


def test_work_is_done_in_another_process_that_stays(tmp_path: Path) -> None:
    first = run_sandboxed(sleep_and_count, str(tmp_path), "a", returns=int)
    assert first != os.getpid()
    assert run_sandboxed(sleep_and_count, str(tmp_path), "a", returns=int) == first
    assert run_sandboxed(bytes, 3_000_000, returns=bytes) == bytes(3_000_000)


@pytest.mark.slow
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
    run_sandboxed(misbehave, "", returns=str)  # the child is up
    seconds = 3 if how == "endless" else 60
    failure = run_sandboxed(misbehave, how, returns=str, seconds=seconds, num_bytes=1 << 29)
    assert isinstance(failure, WorkerFailure)
    assert failure.reason == reason
    assert message in failure.message
    assert run_sandboxed(misbehave, "well", returns=str) == "well"


def test_an_exception_of_the_work_costs_nothing_and_what_can_be_mended_is_raised_here() -> None:
    before = _child_pid()
    with pytest.raises(UsageError, match="found this"):
        run_sandboxed(misbehave, "error", returns=str)
    assert isinstance(run_sandboxed(misbehave, "raise", returns=str), WorkerFailure)
    assert _child_pid() == before


def test_work_may_take_half_of_what_a_small_machine_has() -> None:
    assert min(4 << 30, machine.memory_bytes() // 2) == sandbox.PHOTO_BYTES


def test_a_child_that_somebody_killed_is_replaced_and_its_work_done() -> None:
    child = _child_pid()
    os.kill(child, signal.SIGKILL)
    assert _child_pid() not in (child, os.getpid())


def test_threads_have_children_of_their_own_and_a_fork_does_not_share_one() -> None:
    mine = _child_pid()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_child_pid()))
    thread.start()
    thread.join()
    assert found[0] != mine
    forked = os.fork()
    if forked == 0:
        os._exit(0 if _child_pid() != mine else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert _child_pid() == mine


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
        "print(run_sandboxed(os.getpid, returns=int), flush=True)\n"
        "run_sandboxed(misbehave, sys.argv[1], returns=str)\nsys.stdin.read()"
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
        found.append(_child_pid())
        _wait_until_gone(found[0])
        found.append(_child_pid())

    thread = threading.Thread(target=ask_twice)
    thread.start()
    thread.join()
    assert found[0] != found[1]


def test_a_child_that_cannot_start_is_an_error_and_not_the_photos_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_SERVE", "raise SystemExit('no such module {parent}')")
    with pytest.raises(RuntimeError, match=r"cannot start .*no such module"):
        _in_a_new_thread(_child_pid)


def _in_a_new_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, which has a child of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_result_of_another_type_is_a_crash_and_one_that_has_no_form_is_named() -> None:
    assert run_sandboxed(echo, Values("a", 1, (1.5,), (b"12",)), returns=Values) == Values(
        "a", 1, (1.5,), (b"12",)
    )
    assert run_sandboxed(echo, 1, returns=str) == WorkerFailure(
        "crashed", "it sent a malformed answer: it is of the type int; expected str"
    )
    assert run_sandboxed(echo, object, returns=type) == WorkerFailure(
        "crashed", "TypeError: a type cannot leave the sandbox"
    )


def test_errors_come_back_as_the_nearest_class_of_the_allow_list() -> None:
    with pytest.raises(ImageRefused, match="too little") as refused:
        run_sandboxed(raise_again, ImageRefused("too_small", "too little"), returns=str)
    assert refused.value.reason_code == "too_small"
    with pytest.raises(DiffBFRError, match="found this") as raised:
        run_sandboxed(raise_again, ShardDamagedError("found this"), returns=str)
    assert type(raised.value) is DiffBFRError
    with pytest.raises(ImportError, match="no such module"):
        run_sandboxed(raise_again, ModuleNotFoundError("no such module"), returns=str)


class _Trap:
    """A pickle of this leaves a file where it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def _answering(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """Have every new child send this answer after it is asked for the first time."""
    ready = b"".join(encode_answer("ready"))
    monkeypatch.setattr(
        sandbox,
        "_SERVE",
        f"import os, sys; os.write(1, {ready!r}); sys.stdin.buffer.read(8); os.write(1, {answer!r})".replace(
            "{", "{{"
        ).replace("}", "}}")
        + " # {parent} {limit} {path}",
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\xff\xff\xff\xff", "it sent a malformed answer: its header has 4294967295 bytes"),
        (b"\x02\x00\x00\x00[]", "it sent a malformed answer: its header has other fields"),
        (b"\x02\x00", "it ended its process with exit status 0"),
    ],
)
def test_a_child_that_answers_nonsense_has_crashed(
    answer: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering(monkeypatch, answer)
    failure = _in_a_new_thread(lambda: run_sandboxed(misbehave, "", returns=str, seconds=20))
    assert isinstance(failure, WorkerFailure)
    assert failure.reason == "crashed"
    assert failure.message.startswith(message)


@pytest.mark.parametrize("framing", ["<I", "<Q", ""])
def test_a_pickle_as_answer_is_not_read(
    framing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(("done", _Trap(str(tmp_path / "opened"))))
    _answering(monkeypatch, (struct.pack(framing, len(data)) if framing else b"") + data)
    failure = _in_a_new_thread(lambda: run_sandboxed(misbehave, "", returns=str, seconds=20))
    assert isinstance(failure, WorkerFailure)
    assert failure.reason == "crashed"
    assert not (tmp_path / "opened").exists()


def test_the_parent_unpickles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_: pytest.fail("the parent unpickles"))
    assert run_sandboxed(echo, b"12", returns=bytes) == b"12"
