"""Shards of a dataset on S3, on this machine's disk: fetched when first read, checked by digest, the least recently used removed.

A shard's file is named by its digest, so that equal shards of several datasets are one file and none is ever stale. Processes share the
folder: one fetches while the others wait, and room is made under one lock. The files being fetched count as if they were there. Datasets
whose columns do not fit together are read all the same, with a fetch for most reads: give the cache room for what a stage reads.
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
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError, Tars
from pipelines import commits, storage
from pipelines.commits import TarRecord

LIMIT_VARIABLE: Final = "DIFFBFR_CACHE_BYTES"
_DEFAULT_LIMIT: Final = 64 << 30
_ATTEMPTS: Final = 2
_ABANDONED_S: Final = 3600.0
_FETCHING: Final = ".fetching"
_OF_PHOTOS: Final = re.compile(r"lq|hq\d+")
"""Columns that are made with the dataset; the others were appended and have records of their own."""


@dataclass(frozen=True)
class CachedTars(Tars):
    """The tars of one dataset on S3 behind a folder of at most `limit_bytes`; picklable."""

    root: str
    folder: str
    limit_bytes: int

    def copies(self, tar: str) -> Iterator[Path]:
        """Yield where a tar lies; whoever finds it gone or damaged asks for the next, which is fetched anew."""
        record = _record(self.root, tar)
        place = self._place(record)
        if _touch(place):
            yield place
        for _ in range(_ATTEMPTS):
            self._fetch(tar, record)
            _touch(place)
            yield place
            with contextlib.suppress(FileNotFoundError):
                place.unlink()

    def _place(self, record: TarRecord) -> Path:
        return Path(self.folder) / f"{record.sha256}.tar"

    def _fetch(self, tar: str, record: TarRecord) -> None:
        """Bring one tar here, unless another process has meanwhile; `ShardDamagedError` if what comes is not what was committed."""
        place, uri = self._place(record), storage.join(self.root, tar)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with _locked(Path(self.folder) / f".{record.sha256[:2]}.lock"):
            if place.exists():
                return
            draft = place.with_name(f"{uuid.uuid4().hex}{_FETCHING}")
            try:
                with _locked(Path(self.folder) / ".room.lock"):
                    self._make_room(record)
                    with draft.open("xb") as file:
                        file.truncate(record.num_bytes)  # keeps its room while it comes
                data = _read_checked(uri, record)
                with draft.open("r+b") as file:
                    file.write(data)
                draft.replace(place)
            finally:
                draft.unlink(missing_ok=True)

    def _make_room(self, record: TarRecord) -> None:
        """Remove the least recently used files, and what fetches left behind that were killed."""
        if record.num_bytes > self.limit_bytes:
            raise UsageError(
                f"{record.tar} has {record.num_bytes} bytes, the cache in {self.folder} may have {self.limit_bytes}; "
                f"expected room for at least one shard; raise {LIMIT_VARIABLE}"
            )
        there = []
        for path in Path(self.folder).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                facts = path.stat()
                if path.suffix == ".tar" or path.name.endswith(_FETCHING):
                    there.append((facts.st_mtime_ns, facts.st_size, path))
        used = sum(num_bytes for _, num_bytes, _ in there)
        for mtime_ns, num_bytes, path in sorted(there):
            abandoned = time.time() - mtime_ns / 1e9 > _ABANDONED_S
            if path.suffix == ".tar" and used + record.num_bytes <= self.limit_bytes:
                continue
            if path.suffix == ".tar" or abandoned:
                path.unlink(missing_ok=True)
                used -= num_bytes


def cache_of(root: str) -> CachedTars:
    """The cache for a dataset on S3, in the folder and of the size that the environment says."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    if given and not given.isdigit():
        raise UsageError(f"{LIMIT_VARIABLE} is {given!r}; expected a whole number of bytes; set it so")
    return CachedTars(root, str(storage.cache_folder("shards")), int(given) if given else _DEFAULT_LIMIT)


@lru_cache(maxsize=65536)
def _record(root: str, tar: str) -> TarRecord:
    """What the shard's record says of a tar."""
    column, _, number = tar.removesuffix(".tar").partition("/")
    commit = commits.read(root, "commits" if _OF_PHOTOS.fullmatch(column) else f"{column}/commits", int(number))
    for record in commit.tars if commit is not None else ():
        if record.tar == tar:
            return record
    raise ShardDamagedError(f"{root} has no record of {tar}; expected one for each shard; run the same command again")


def _read_checked(uri: str, record: TarRecord) -> bytes:
    for _ in range(_ATTEMPTS):
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise ShardDamagedError(f"{uri} is gone; expected a committed shard; run the shard step again") from error
        if hashlib.sha256(data).hexdigest() == record.sha256:
            return data
    raise ShardDamagedError(
        f"{uri} came {_ATTEMPTS} times with other bytes than were committed; expected sha256 {record.sha256[:12]}; make the shard again"
    )


def _touch(place: Path) -> bool:
    """Mark a file as used just now; False if it is not there."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold a lock that ends with the process."""
    with place.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
