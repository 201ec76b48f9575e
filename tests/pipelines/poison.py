"""Photos that kill, hang or starve whoever decodes them, known by the digest of their bytes; a stand-in
for `make_face`.
"""

import ctypes
import hashlib
import os
from typing import Any

import numpy as np

from diffbfr.errors import UsageError
from pipelines.dataset import samples

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
    """An error that does not survive pickling, and whose words hold an address."""

    def __init__(self, how: str, *, held: object) -> None:
        super().__init__(f"palette index out of range\nin {object()} of {how} {held}")


def make_face(config: samples.ShardConfig, key: str, source: str, data: bytes) -> samples.Face:
    """Misbehave if the end of the file has a magic digest; otherwise make the face."""
    for length in {len(mark) for mark in MARKS.values()}:
        misbehave(_MAGIC.get(hashlib.sha256(data[-length:]).hexdigest(), ""))
    return samples.make_face(config, key, source, data)


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
