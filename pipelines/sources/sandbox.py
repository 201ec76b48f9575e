"""Decoding of untrusted bytes in a child process with limits on time and memory, one photo at a time.

A photo that crashes its decoder, never ends or exhausts the memory costs only itself: the child is replaced,
and the caller knows which photo it had. Each thread of a worker keeps one child, which ends with the thread,
with the worker, or after it was idle for a while.

This isolates crashes, not attackers: the child runs as the same user, with the same files and network and
without seccomp. The parent pickles its questions, and reads answers only in the format of
`sandbox_protocol.py`, so what a damaged child sends cannot run code here.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import IO, Any, Final, Literal, TypeAlias, TypeVar

from diffbfr.errors import DiffBFRError, one_line
from pipelines.sources.sandbox_protocol import (
    Answer,
    MalformedAnswerError,
    decode_error,
    decode_value,
    encode_answer,
    encode_error,
    read_answer,
    send_answer,
)
from pipelines.storage.machine import memory_bytes

T = TypeVar("T")
FailureReason: TypeAlias = Literal["crashed", "timed_out", "out_of_memory"]

PHOTO_SECONDS: Final = 60.0
PHOTO_BYTES: Final = min(4 << 30, memory_bytes() // 2)
"""More than the largest allowed photo takes, and too little for the OOM killer to choose the worker."""
ONE_CORE: Final = MappingProxyType({"OPENCV_FOR_THREADS_NUM": "1", "OMP_NUM_THREADS": "1"})
"""A worker has one core: two threads on one face cost a third more CPU time than one."""

_PIPE_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 16 << 20
_START_SECONDS: Final = 300.0
_IDLE_SECONDS: Final = 30.0
_ADDRESS: Final = re.compile(r"\b0x[0-9a-f]+")
_MESSAGE_CHARACTERS: Final = 500
_QUESTION_LENGTH: Final = struct.Struct("<Q")
_SERVE: Final = (
    "import sys; sys.path[:] = {path!r}; from pipelines.sources.sandbox import serve; serve({parent}, "
    "{limit})"
)
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class WorkerFailure:
    """Why a sandboxed call has no result."""

    reason: FailureReason
    message: str


class _ChildSilent(Exception):  # noqa: N818 - as below
    pass


class _ChildDied(Exception):  # noqa: N818 - an event that never leaves this module
    pass


def run_sandboxed(
    function: Callable[..., T],
    *arguments: Any,
    returns: type[T],
    seconds: float = PHOTO_SECONDS,
    num_bytes: int = PHOTO_BYTES,
) -> T | WorkerFailure:
    """Return `function(*arguments)` from the child, or `WorkerFailure` if the child died or hit a bug.

    `function` is importable and returns JSON values, bytes, numeric arrays, tuples, or a dataclass of those;
    the result is rebuilt as a `returns` and checked against its fields. Errors that the user can mend
    (`DiffBFRError`, ImportError) are raised here, from their name and message. `num_bytes` is what the call
    may allocate beyond a fresh child. A call whose child died, or sent something malformed, is retried once,
    because another process may have killed it; one that exceeds `seconds` is not.
    """
    for attempt in (1, 2):
        child = _child(num_bytes)
        try:
            child.prepare(function)
            answer = child.ask(function, arguments, seconds)
            if answer.kind == "done":
                return decode_value(answer, returns)
            if answer.kind == "bug":
                return WorkerFailure("crashed", decode_value(answer, str)[:_MESSAGE_CHARACTERS])
            if answer.kind not in ("raised", "memory"):
                raise MalformedAnswerError("it answers nothing")
            raised = decode_error(answer) if answer.kind == "raised" else None
        except _ChildSilent:
            child.end()
            return WorkerFailure("timed_out", f"it was not done after {seconds:g} s")
        except (_ChildDied, MalformedAnswerError) as error:
            child.end()
            if attempt == 2:
                malformed = isinstance(error, MalformedAnswerError)
                message = f"it sent a malformed answer: {error}" if malformed else str(error)
                return WorkerFailure("crashed", message)
        else:
            if raised is not None:
                raise raised
            child.end()  # after a MemoryError nobody knows what it still holds
            return WorkerFailure("out_of_memory", f"it wanted more than {num_bytes / 2**30:.3g} GiB")
    raise AssertionError


def warm_up(function: Callable[..., Any], num_bytes: int = PHOTO_BYTES) -> None:
    """Start this thread's child and import what a function needs, so that its first call need not wait."""
    _child(num_bytes).prepare(function)


class _Child:
    """One child process: questions go in as pickles, answers come back as `sandbox_protocol` says."""

    def __init__(self, num_bytes: int) -> None:
        self.owner = os.getpid()
        self.num_bytes = num_bytes
        self._prepared: set[str] = set()
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
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            self._receive(_START_SECONDS)
        except (_ChildDied, _ChildSilent, MalformedAnswerError) as error:
            self.end()
            self._errors.seek(0)
            printed = " ".join(self._errors.read().decode(errors="replace").split())[-500:]
            raise RuntimeError(
                f"the process that decodes photos cannot start ({error or 'too slow'}): {printed}"
            ) from error

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def prepare(self, function: Callable[..., Any]) -> None:
        """Import in the child what a function needs, outside the time limit of the call."""
        if function.__module__ not in self._prepared:
            self.ask(_import, (function,), _START_SECONDS)
            self._prepared.add(function.__module__)

    def ask(self, function: Callable[..., Any], arguments: Sequence[Any], seconds: float) -> Answer:
        """Send a call and wait for its answer."""
        question = pickle.dumps((function, tuple(arguments)))
        deadline = time.monotonic() + seconds
        try:
            self._write(_QUESTION_LENGTH.pack(len(question)), deadline)
            self._write(question, deadline)
        except OSError as error:
            raise _ChildDied("the child was gone") from error
        return self._receive(seconds)

    def end(self) -> None:
        """Kill the child and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _write(self, data: bytes, deadline: float) -> None:
        """Write to the child, which may have stopped reading."""
        assert self._process.stdin is not None
        handle, rest = self._process.stdin.fileno(), memoryview(data)
        while rest:
            if not select.select([], [handle], [], max(0.0, deadline - time.monotonic()))[1]:
                raise _ChildSilent
            rest = rest[os.write(handle, rest) :]

    def _receive(self, seconds: float) -> Answer:
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        return read_answer(partial(self._read, handle, deadline))

    def _read(self, handle: int, deadline: float, length: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _ChildSilent
            piece = os.read(handle, min(length - len(pieces), 1 << 20))
            if not piece:
                status = self._process.wait()
                raise _ChildDied(
                    "it ended its process with "
                    f"{signal.Signals(-status).name if status < 0 else f'exit status {status}'}"
                )
            pieces += piece
        return bytes(pieces)


class _ThreadLocalChild(threading.local):
    child: _Child | None = None


_current = _ThreadLocalChild()


def _child(num_bytes: int) -> _Child:
    """Return this thread's child; a new one if there is none, it died, or has another memory limit."""
    child = _current.child
    if child is not None and child.owner == os.getpid() and child.num_bytes != num_bytes:
        child.end()
    if child is None or not child.alive or child.num_bytes != num_bytes:
        child = _current.child = _Child(num_bytes)
    return child


def serve(parent: int, num_bytes: int) -> None:
    """Answer questions on standard input until it ends or is idle for 30 s. Runs in the child.

    Whatever libraries print to standard output goes to standard error, so that it is no answer.
    """
    # A signal to all is for the parent: a child that it ended would read as a photo that crashed it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the end of its input ends the child
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # what libraries print about one photo after another must not fill the disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    send_answer(answers, encode_answer("ready"))
    limited = False
    while select.select([questions], [], [], _IDLE_SECONDS)[0] and (head := questions.read(8)):
        function, arguments = pickle.loads(questions.read(_QUESTION_LENGTH.unpack(head)[0]))
        if not limited:  # the first question has imported what its function needs
            limit = _data_bytes() + num_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            limited = True
        send_answer(answers, _call(function, arguments))


def _call(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[bytes, ...]:
    """Call a function and encode its result, or the error that it ended with."""
    try:
        return encode_answer("done", function(*arguments))
    except MemoryError:
        return encode_answer("memory")
    except (DiffBFRError, ImportError) as error:  # the caller decides what these mean
        return encode_error(error)
    except Exception as error:  # a bug in the decoder that these bytes trigger
        return encode_answer("bug", _describe(error))


def _import(function: Callable[..., Any]) -> None:
    """Do nothing: unpickling the question has imported the module of the function."""


def _describe(error: Exception) -> str:
    """Return class and message in one line, without the addresses of objects: the same in every process."""
    return _ADDRESS.sub("0x", f"{type(error).__name__}: {one_line(error)}")[:_MESSAGE_CHARACTERS]


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
