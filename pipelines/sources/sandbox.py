"""Work on untrusted bytes, done apart: in a child process with a limit on time and memory, one photo at a
time.

A photo that kills its decoder, never ends or eats all memory costs itself only: the child is replaced, and it
is known which photo it had. Each thread of a worker keeps one child; it ends with the thread, with the
worker, or when there was nothing to do for a while.
"""

import contextlib
import ctypes
import os
import pickle
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, Final, Literal, TypeAlias

from diffbfr.errors import DiffBFRError
from pipelines.storage.machine import memory_bytes

Loss: TypeAlias = Literal["crashed", "timed_out", "out_of_memory"]

PHOTO_SECONDS: Final = 60.0
PHOTO_BYTES: Final = min(4 << 30, memory_bytes() // 2)
"""More than the largest photo allowed takes, and not so much that the machine kills the worker for it."""
ONE_CORE: Final = MappingProxyType({"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"})
"""A worker is one core: two threads on one face cost a third more of both than each on its own."""

_PIPE_BYTES: Final = 1 << 20
_START_SECONDS: Final = 300.0
_IDLE_SECONDS: Final = 30.0
_ADDRESS: Final = re.compile(r"\b0x[0-9a-f]+")
_TOLD_CHARACTERS: Final = 500
_SERVE: Final = (
    "import sys; sys.path[:] = {path!r}; from pipelines.sources.sandbox import serve; serve({parent}, "
    "{limit})"
)
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class WorkerFailure:
    """What became of work that did not come back."""

    reason: Loss
    message: str


class _ChildDied(Exception):  # noqa: N818 - says what happened; never leaves this module
    pass


def run_sandboxed(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = PHOTO_SECONDS,
    num_bytes: int = PHOTO_BYTES,
) -> Any:
    """Return `function(*arguments)` from the child, or `WorkerFailure` if that cost the child its life or
    ended in an error nobody thought of.

    What is somebody's to mend (`DiffBFRError`, a module that cannot be imported) is raised here. `num_bytes`
    is what it may allocate beyond what a fresh child holds. Work that a child dies of is tried once more, for
    somebody else may have killed it; work that takes too long is not.
    """
    for attempt in (1, 2):
        child = _child(num_bytes)
        try:
            child.get_ready(function)
            kind, value = child.ask((function, arguments), seconds)
        except TimeoutError:
            child.end()
            return WorkerFailure("timed_out", f"it was not done after {seconds:g} s")
        except _ChildDied as death:
            child.end()
            if attempt == 2:
                return WorkerFailure("crashed", str(death))
        else:
            if kind == "raised":
                raise value
            if kind == "bug":
                return WorkerFailure("crashed", value)
            if kind == "memory":
                child.end()  # what it still holds is anybody's guess
                return WorkerFailure("out_of_memory", f"it wanted more than {num_bytes / 2**30:.3g} GiB")
            return value
    raise AssertionError


class _Child:
    """One child process, spoken to in pickles with a length in front."""

    def __init__(self, num_bytes: int) -> None:
        self.owner, self.num_bytes = os.getpid(), num_bytes
        self._ready_for: set[str] = set()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        program = _SERVE.format(path=sys.path, parent=os.getpid(), limit=num_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ONE_CORE},
            pipesize=_PIPE_BYTES if sys.platform == "linux" else -1,
        )
        try:
            self._receive(_START_SECONDS)
        except (_ChildDied, TimeoutError) as error:
            self.end()
            self._errors.seek(0)
            said = " ".join(self._errors.read().decode(errors="replace").split())[-500:]
            raise RuntimeError(
                f"the process that decodes photos cannot start ({error or 'too slow'}): {said}"
            ) from error

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def get_ready(self, function: Callable[..., Any]) -> None:
        """Have the child import what a function needs, which is not the time of the work."""
        if function.__module__ not in self._ready_for:
            self.ask((_import, (function,)), _START_SECONDS)
            self._ready_for.add(function.__module__)

    def ask(self, question: Any, seconds: float) -> tuple[str, Any]:
        """Send a question and wait for the answer."""
        try:
            assert self._process.stdin is not None
            _send(self._process.stdin, question)
        except OSError as error:
            raise _ChildDied("the child was gone") from error
        answer: tuple[str, Any] = self._receive(seconds)
        return answer

    def end(self) -> None:
        """Kill the child and close what led to it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _receive(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        (length,) = struct.unpack("<Q", self._read(handle, 8, deadline))
        return pickle.loads(self._read(handle, length, deadline))

    def _read(self, handle: int, length: int, deadline: float) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(handle, min(length - len(pieces), 1 << 20))
            if not piece:
                status = self._process.wait()
                raise _ChildDied(
                    "it ended its process with "
                    f"{signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
                )
            pieces += piece
        return bytes(pieces)


class _Mine(threading.local):
    child: _Child | None = None


_mine = _Mine()


def _child(num_bytes: int) -> _Child:
    child = _mine.child
    if child is not None and child.owner == os.getpid() and child.num_bytes != num_bytes:
        child.end()
    if child is None or not child.alive or child.num_bytes != num_bytes:
        child = _mine.child = _Child(num_bytes)
    return child


def serve(parent: int, num_bytes: int) -> None:
    """Answer questions on standard input until it ends, or nobody asks for a while; what others print goes
    to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # else the end of its input ends it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _send(answers, "ready")
    limited = False
    while select.select([questions], [], [], _IDLE_SECONDS)[0] and (head := questions.read(8)):
        function, arguments = pickle.loads(questions.read(struct.unpack("<Q", head)[0]))
        if not limited:  # the first question has imported what its function needs
            limit = _data_bytes() + num_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            limited = True
        try:
            answer = ("done", function(*arguments))
        except MemoryError:
            answer = ("memory", None)
        except (DiffBFRError, ImportError) as error:  # it is the asker's to judge
            answer = ("raised", error)
        # a bug that these bytes found; told in words, for the error itself may not survive the way
        except Exception as error:
            answer = ("bug", _told(error))
        _send(answers, answer)


def _import(function: Callable[..., Any]) -> None:
    """Nothing is left to do: reading the question has imported the function."""


def _told(error: Exception) -> str:
    """An error in one line, the same whenever it happens: without the addresses of objects."""
    words = _ADDRESS.sub("0x", " ".join(f"{type(error).__name__}: {error}".split()))
    return words[:_TOLD_CHARACTERS]


def _send(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
