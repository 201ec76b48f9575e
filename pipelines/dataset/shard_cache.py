"""Shards of a dataset on S3, on this machine's disk: fetched when first read, checked by digest, the least
recently used removed.

A shard's file is named by its digest, so that equal shards of several datasets are one file and none is ever
stale. Processes share the folder: one fetches while the others wait, room is made under one lock, and nobody
removes a file while another reads it. The files being fetched count as if they were there. Datasets whose
columns do not fit together are read all the same, with a fetch for most reads: give the cache room for what a
stage reads.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError, TarStore
from pipelines import storage
from pipelines.dataset import commits

LIMIT_VARIABLE: Final = "DIFFBFR_CACHE_BYTES"
_DEFAULT_LIMIT: Final = 64 << 30
_ATTEMPTS: Final = 2
_ABANDONED_S: Final = 3600.0
_PATIENCE_S: Final = 60.0
_PAUSE_S: Final = 0.02
_FETCHING: Final = ".fetching"
_OF_PHOTOS: Final = re.compile(r"lq|hq\d+")
"""Columns that are made with the dataset; the others were appended and have records of their own."""


@dataclass(frozen=True, slots=True)
class Tar:
    """What is needed of a tar's record, which also lists its members: a million of those would fill the
    memory.
    """

    tar: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class CachedTarStore(TarStore):
    """The tars of one dataset on S3 behind a folder of at most `limit_bytes`; picklable."""

    root: str
    folder: str
    limit_bytes: int

    def copies(self, tar: str) -> Iterator[Path]:
        """Yield where a tar lies, and keep it there until the next is asked for, which is fetched anew:
        this one was found damaged.
        """
        expected = _expected(self.root, tar)
        place = Path(self.folder) / f"{expected.sha256}.tar"
        for _ in range(1 + _ATTEMPTS):
            with _hold(place) or self._fetch(expected, place) as file:
                yield place
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(place.stat(), os.fstat(file.fileno())):
                        place.unlink()

    def _fetch(self, expected: Tar, place: Path) -> IO[bytes]:
        """Bring one tar here, unless another process has meanwhile; `ShardDamagedError` if what comes is
        not what was committed.
        """
        uri = storage.join(self.root, expected.tar)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with _locked(Path(self.folder) / f".{expected.sha256[:2]}.lock"):
            there = _hold(place)
            if there is not None:
                return there
            draft = place.with_name(f"{uuid.uuid4().hex}{_FETCHING}")
            with contextlib.ExitStack() as until_published:
                until_published.callback(draft.unlink, missing_ok=True)
                with _locked(Path(self.folder) / ".room.lock"):
                    self._make_room(expected)
                    file = until_published.enter_context(draft.open("x+b"))
                    file.truncate(expected.num_bytes)  # keeps its room while it comes
                file.write(_read_checked(uri, expected))
                file.flush()
                fcntl.flock(file, fcntl.LOCK_SH)
                draft.replace(place)
                until_published.pop_all()
                return file

    def _make_room(self, expected: Tar) -> None:
        """Remove the least recently used files that nobody reads, and what fetches left behind that were
        killed.
        """
        if expected.num_bytes > self.limit_bytes:
            raise UsageError(
                f"{expected.tar} has {expected.num_bytes} bytes, the cache in {self.folder} may have "
                f"{self.limit_bytes}; "
                f"expected room for at least one shard; raise {LIMIT_VARIABLE}"
            )
        patience = time.monotonic() + _PATIENCE_S
        while self._remove_oldest(self.limit_bytes - expected.num_bytes) > 0:
            if time.monotonic() > patience:
                raise UsageError(
                    f"the cache in {self.folder} may have {self.limit_bytes} bytes, all of them in use for "
                    f"{_PATIENCE_S:.0f} s; "
                    f"expected room for {expected.tar}; raise {LIMIT_VARIABLE}"
                )
            time.sleep(_PAUSE_S)  # a read takes milliseconds

    def _remove_oldest(self, limit_bytes: int) -> int:
        """Remove files until the folder holds at most so many bytes; returns how many there still are too
        many.
        """
        there = []
        for path in Path(self.folder).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                facts = path.stat()
                if path.suffix == ".tar" or path.name.endswith(_FETCHING):
                    there.append((facts.st_mtime_ns, facts.st_size, path))
        used = sum(num_bytes for _, num_bytes, _ in there)
        for mtime_ns, num_bytes, path in sorted(there):
            abandoned = path.suffix != ".tar" and time.time() - mtime_ns / 1e9 > _ABANDONED_S
            if abandoned or (path.suffix == ".tar" and used > limit_bytes):
                used -= num_bytes if _remove(path) else 0
        return used - limit_bytes


def cache_of(root: str) -> CachedTarStore:
    """The cache for a dataset on S3, in the folder and of the size that the environment says."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    if given and not given.isdigit():
        raise UsageError(f"{LIMIT_VARIABLE} is {given!r}; expected a whole number of bytes; set it so")
    return CachedTarStore(root, str(storage.cache_folder("shards")), int(given) if given else _DEFAULT_LIMIT)


def _expected(root: str, tar: str) -> Tar:
    """What the shard's record says of a tar."""
    column, _, number = tar.removesuffix(".tar").partition("/")
    for expected in _tars(
        root, "commits" if _OF_PHOTOS.fullmatch(column) else f"{column}/commits", int(number)
    ):
        if expected.tar == tar:
            return expected
    raise ShardDamagedError(
        f"{root} has no record of {tar}; expected one for each shard; run the same command again"
    )


@lru_cache(maxsize=65536)
def _tars(root: str, folder: str, index: int) -> tuple[Tar, ...]:
    """The tars of one shard's record."""
    commit = commits.read(root, folder, index)
    if commit is None:
        raise ShardDamagedError(
            f"{root} has no record {folder}/{index:06d}.json; expected one for each shard; run the same "
            "command again"
        )
    return tuple(Tar(record.tar, record.num_bytes, record.sha256) for record in commit.tars)


def _read_checked(uri: str, expected: Tar) -> bytes:
    for _ in range(_ATTEMPTS):
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise ShardDamagedError(
                f"{uri} is gone; expected a committed shard; run the shard step again"
            ) from error
        if hashlib.sha256(data).hexdigest() == expected.sha256:
            return data
    raise ShardDamagedError(
        f"{uri} came {_ATTEMPTS} times with other bytes than were committed; expected sha256 "
        f"{expected.sha256[:12]}; make the shard again"
    )


def _hold(place: Path) -> IO[bytes] | None:
    """Open a file, mark it as used just now and keep it from being removed until it is closed; None if it
    is not there.
    """
    try:
        file = place.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # removed before it was held
        file.close()
        return None
    os.utime(file.fileno())
    return file


def _remove(place: Path) -> bool:
    """Remove a file unless somebody holds it; whether it is gone."""
    try:
        with place.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold a lock that ends with the process."""
    with place.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
