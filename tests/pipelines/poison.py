"""Photos that kill, hang or starve the process that decodes them, known by the digest of their bytes.

`make_face` and `read_face` replace the real ones; the other functions run in a sandbox too.
"""

import ctypes
import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffbfr.errors import UsageError
from pipelines.dataset import samples
from pipelines.restoration import face_input

MARKS = {
    "crash": b"segfault",
    "abort": b"abort",
    "endless": b"endless",
    "hog": b"hog",
    "exit": b"exit",
    "raise": b"raise",
    "error": b"error",
}
_MAGIC = {hashlib.sha256(mark).hexdigest(): name for name, mark in MARKS.items()}


class OddError(ValueError):
    """An error that does not survive pickling, and whose message holds an address."""

    def __init__(self, how: str, *, held: object) -> None:
        super().__init__(f"palette index out of range\nin {object()} of {how} {held}")


def make_face(config: samples.ShardConfig, key: str, source: str, data: bytes) -> samples.Face:
    """Misbehave if the end of the file has a magic digest; otherwise make the face."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return samples.make_face(config, key, source, data)


def read_face(data: bytes, *sizes: int) -> face_input.FaceInput:
    """Misbehave if the end of the file has a magic digest; otherwise read the face."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return face_input.read_face(data, *sizes)


def misbehave(how: str) -> str:
    """Do what a decoder with a bug does."""
    if how == "crash":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "endless":
        while True:
            pass
    elif how == "hog":
        held: list[Any] = []
        while True:
            held.append(np.ones(1 << 24))
    elif how == "exit":
        os._exit(3)
    elif how == "raise":
        raise OddError(how, held={})
    elif how == "error":
        raise UsageError("found this; expected that; do so")
    return how


def sleep_and_count(folder: str, name: str) -> int:
    """Leave a mark, so that a test sees in which process, and how often, this ran."""
    with open(os.path.join(folder, name), "a") as file:  # noqa: PTH118, PTH123
        file.write(f"{os.getpid()}\n")
    return os.getpid()


@dataclass(frozen=True)
class Values:
    """One field of each kind that a sandboxed function may return."""

    text: str
    nothing: int | None
    numbers: tuple[float, ...]
    contents: tuple[bytes, ...]


def echo(value: Any) -> Any:
    """Return what is given."""
    return value


def raise_again(error: Exception) -> str:
    """Raise what is given."""
    raise error


class StopOnce:
    """Stops its own process at the first task, as `kill -STOP` would."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def __call__(self, task: int) -> int:
        if task == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return task**2


class MakeStopOnce:
    """Makes it, in an actor."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __call__(self) -> StopOnce:
        return StopOnce(self.mark)
