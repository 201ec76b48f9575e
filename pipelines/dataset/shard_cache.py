"""LRU cache on local disk for the shards of datasets on S3, filled on first read and checked by digest.

A cached file is named by its digest, so equal shards of several datasets share one file and no file is stale.
Processes share the folder: one fetches a shard while the others wait, space is freed under one lock, and a
file is not removed while it is read. Files being fetched count with their full size. If the columns that are
read together do not fit, most reads fetch again: the cache should have room for all that one stage reads.
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
_WAIT_FOR_SPACE_S: Final = 60.0
_PAUSE_S: Final = 0.02
_FETCHING: Final = ".fetching"
_OF_PHOTOS: Final = re.compile(r"lq|hq\d+")
"""Names of the columns made from photos; appended columns have commit records of their own."""


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar's entry in a commit record without its members, of which a large dataset has millions."""

    tar: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class CachedTarStore(TarStore):
    """The tars of one dataset on S3, cached in a local folder of at most `limit_bytes`; picklable."""

    root: str
    folder: str
    limit_bytes: int

    def copies(self, tar: str) -> Iterator[Path]:
        """Yield the local path of a tar, which is kept until the next one is requested.

        A caller requests the next one if this one is damaged, so it is then removed and fetched again.
        """
        expected = _expected(self.root, tar)
        path = Path(self.folder) / f"{expected.sha256}.tar"
        for _ in range(1 + _ATTEMPTS):
            with _open_locked(path) or self._fetch(expected, path) as file:
                yield path
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                        path.unlink()

    def _fetch(self, expected: Tar, path: Path) -> IO[bytes]:
        """Fetch one tar unless another process has done so; `ShardDamagedError` if its digest is wrong."""
        uri = storage.join(self.root, expected.tar)
        storage.make_cache(Path(self.folder))
        # 256 locks: processes that want the same shard wait, those that want others mostly do not
        with _locked(Path(self.folder) / f".{expected.sha256[:2]}.lock"):
            fetched = _open_locked(path)
            if fetched is not None:
                return fetched
            partial = path.with_name(f"{uuid.uuid4().hex}{_FETCHING}")
            with contextlib.ExitStack() as until_published:
                until_published.callback(partial.unlink, missing_ok=True)
                with _locked(Path(self.folder) / ".room.lock"):
                    self._free_space(expected)
                    file = until_published.enter_context(partial.open("x+b"))
                    file.truncate(expected.num_bytes)  # reserves the space during the transfer
                file.write(_read_checked(uri, expected))
                file.flush()
                fcntl.flock(file, fcntl.LOCK_SH)
                partial.replace(path)
                until_published.pop_all()
                return file

    def _free_space(self, expected: Tar) -> None:
        """Remove the least recently used files that are not being read, and the rests of killed fetches."""
        if expected.num_bytes > self.limit_bytes:
            raise UsageError(
                f"{expected.tar} has {expected.num_bytes} bytes, the cache in {self.folder} may have "
                f"{self.limit_bytes}; expected room for at least one shard; raise {LIMIT_VARIABLE}"
            )
        deadline = time.monotonic() + _WAIT_FOR_SPACE_S
        while self._remove_oldest(self.limit_bytes - expected.num_bytes) > 0:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"the cache in {self.folder} may have {self.limit_bytes} bytes, all of them in use for "
                    f"{_WAIT_FOR_SPACE_S:.0f} s; expected room for {expected.tar}; raise {LIMIT_VARIABLE}"
                )
            time.sleep(_PAUSE_S)  # a read takes milliseconds

    def _remove_oldest(self, limit_bytes: int) -> int:
        """Remove files until the folder holds at most `limit_bytes`; return the number of bytes in excess."""
        there = []
        for path in Path(self.folder).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.stat()
                if path.suffix == ".tar" or path.name.endswith(_FETCHING):
                    there.append((status.st_mtime_ns, status.st_size, path))
        # by time of last use: `_open_locked` updates it on every read
        used = sum(num_bytes for _, num_bytes, _ in there)
        for mtime_ns, num_bytes, path in sorted(there):
            abandoned = path.suffix != ".tar" and time.time() - mtime_ns / 1e9 > _ABANDONED_S
            if abandoned or (path.suffix == ".tar" and used > limit_bytes):
                used -= num_bytes if _remove(path) else 0
        return used - limit_bytes


def cache_of(root: str) -> CachedTarStore:
    """The cache for a dataset on S3, with the folder and the size that the environment sets."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    if given and not given.isdigit():
        raise UsageError(f"{LIMIT_VARIABLE} is {given!r}; expected a whole number of bytes; set it so")
    return CachedTarStore(root, str(storage.cache_folder("shards")), int(given) if given else _DEFAULT_LIMIT)


def _expected(root: str, tar: str) -> Tar:
    """The entry of a tar in its shard's commit record."""
    column, _, number = tar.removesuffix(".tar").partition("/")
    folder = "commits" if _OF_PHOTOS.fullmatch(column) else f"{column}/commits"
    for expected in _tars(root, folder, int(number)):
        if expected.tar == tar:
            return expected
    raise ShardDamagedError(
        f"{root} has no record of {tar}; expected one for each shard; run the same command again"
    )


@lru_cache(maxsize=65536)
def _tars(root: str, folder: str, index: int) -> tuple[Tar, ...]:
    """The tars in one shard's commit record."""
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


def _open_locked(path: Path) -> IO[bytes] | None:
    """Open a file under a shared lock, which keeps it from being removed, and update its time of last use.

    None if there is no such file.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # removed before it was locked
        file.close()
        return None
    # the time of modification is the time of last use
    os.utime(file.fileno())
    return file


def _remove(path: Path) -> bool:
    """Remove a file unless it is locked; False if it is."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive file lock; the kernel releases it if the process ends."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
