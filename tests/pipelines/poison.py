"""Photos that kill, hang or starve the process that decodes them, known by the digest of their bytes.

`make_face`, `read_face` and `read_whole` replace the real ones; the other functions run in a sandbox too.
"""

import contextlib
import ctypes
import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffbfr.errors import UsageError
from diffbfr.faces import photo
from pipelines.dataset import samples
from pipelines.restoration import face_input, whole_input
from tests.diffbfr.faces.dots import DotDetector

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


def make_face(
    config: samples.ShardConfig, key: str, source: str, data: bytes, split_by_bytes: bool = False
) -> samples.Face:
    """Misbehave if the end of the file has a magic digest; otherwise make the face."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return samples.make_face(config, key, source, data, split_by_bytes)


def read_face(data: bytes, *sizes: int) -> face_input.FaceInput:
    """Misbehave if the end of the file has a magic digest; otherwise read the face."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return face_input.read_face(data, *sizes)


def read_whole(data: bytes, *settings: Any) -> whole_input.WholeInput:
    """Misbehave if the end of the file has a magic digest; otherwise read the photo and find faces of dots."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    photo.load_detector = lambda path: DotDetector()  # type: ignore[attr-defined]
    return whole_input.read_whole(data, *settings)


def decode_image(data: bytes, *sizes: int) -> Any:
    """Misbehave if the end of the file has a magic digest; otherwise return no bytes."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return np.zeros((8, 8, 3), np.uint8) if not sizes else b""


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


@dataclass(frozen=True, eq=False)
class LooseFace:
    """What `FaceInput` is, unchecked."""

    width: int
    height: int
    pixels: Any
    kept: Any = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LooseKept:
    """What `Kept` is, unchecked."""

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: Any = None
    alpha: Any = None


def face_of_another_size(data: bytes, lq_px: int, *sizes: int) -> LooseFace:
    """Return more pixels than were asked for."""
    return LooseFace(24, 24, np.zeros((lq_px + 1, lq_px, 3), np.uint8), LooseKept())


def face_of_floats(data: bytes, lq_px: int, *sizes: int) -> LooseFace:
    """Return pixels of another type."""
    return LooseFace(24, 24, np.zeros((lq_px, lq_px, 3), np.float32), LooseKept())


def face_with_odd_opacity(data: bytes, lq_px: int, *sizes: int) -> LooseFace:
    """Return an opacity that is none."""
    return LooseFace(24, 24, np.zeros((lq_px, lq_px, 3), np.uint8), LooseKept(alpha=b"no array"))


def marking_read_face(data: bytes, *sizes: int) -> face_input.FaceInput:
    """Leave a file that is named by this process, then read the face."""
    (Path(os.environ["DIFFBFR_TEST_MARKS"]) / str(os.getpid())).touch()
    return face_input.read_face(data, *sizes)


def crash(data: bytes) -> Any:
    """Crash at every image."""
    return misbehave("crash")


def send_raw(data: bytes) -> Any:
    """Write to every pipe that this process has, as a child does that was taken over, and end it."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.set_blocking(number, False)
            os.write(number, data)
    os._exit(0)
