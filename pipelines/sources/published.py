"""Published checksums of FFHQ: `ffhq-dataset-v2.json` has the MD5 of every file and of its pixels.

The index has a quarter of a gigabyte, so it is parsed as a stream and kept in a database on disk.
"""

import hashlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

from diffbfr.errors import UsageError
from diffbfr.images import ImageRefused, decode
from pipelines import storage
from pipelines.sources.ffhq_index import index_rows
from pipelines.sources.listing_db import open_listing_db
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.sources.source import PhotoRef, PhotoUnreadableError, is_photo

INDEX: Final = "ffhq-dataset-v2.json"


@dataclass(frozen=True)
class Index:
    """An index of FFHQ. `folder` is the prefix that photos beside it have before their names in the index."""

    name: str
    version: str
    folder: str = ""
    open: Callable[[], AbstractContextManager[IO[bytes]]] = field(compare=False, kw_only=True)


class PublishedChecksums:
    """The checksums of an index: (file_md5, pixel_md5) by a path like `images1024x1024/00000/00000.png`."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._listing_db: sqlite3.Connection = self._closing.enter_context(open_listing_db())
        self._listing_db.execute(
            "CREATE TABLE published_checksum (path TEXT PRIMARY KEY, file_md5 TEXT, pixel_md5 TEXT) "
            "WITHOUT ROWID"
        )

    def add(self, rows: Iterable[tuple[str, str, str]]) -> int:
        """Add rows of (path, file_md5, pixel_md5); returns the number of all rows."""
        self._listing_db.executemany("INSERT OR REPLACE INTO published_checksum VALUES (?, ?, ?)", rows)
        return int(self._listing_db.execute("SELECT count(*) FROM published_checksum").fetchone()[0])

    def find(self, path: str) -> tuple[str, str] | None:
        """Return (file_md5, pixel_md5) of a file; None if the index does not name it."""
        found: tuple[str, str] | None = self._listing_db.execute(
            "SELECT file_md5, pixel_md5 FROM published_checksum WHERE path = ?", (path,)
        ).fetchone()
        return found

    def count(self, layout: str) -> int:
        """Return how many files the index names in a top folder."""
        after = f"{layout}{chr(ord('/') + 1)}"
        return int(
            self._listing_db.execute(
                "SELECT count(*) FROM published_checksum WHERE path > ? AND path < ?", (f"{layout}/", after)
            ).fetchone()[0]
        )


def find_index(uri: str) -> str:
    """Return the place of FFHQ's index in a folder or beside it, where its download puts it; "" if none."""
    parent = uri.rstrip("/").rpartition("/")[0]
    places = [
        storage.join(place, INDEX)
        for place in (uri, parent)
        if not storage.is_remote(uri) or place.count("/") > 1
    ]
    return next((place for place in places if _is_file(place)), "")


def _is_file(place: str) -> bool:
    """True for a file; a pipe or a device of this name is no index."""
    return storage.exists(place) if storage.is_remote(place) else Path(place).is_file()


def index_at(uri: str) -> Index | None:
    """Open the index that `find_index` found; None for ""."""
    return (
        Index(uri, storage.version(uri), open=lambda: storage.open_read(uri, verified=True)) if uri else None
    )


def attach_checksums(
    refs: Iterable[PhotoRef], index: Index | None, place: str, in_archives: bool = False
) -> Iterator[PhotoRef]:
    """Yield the photos with their published checksums; a warning counts those that only one side has.

    A photo is looked up by its name, then by its name in the folder or archive `place`. The name of a photo
    `in_archives` begins with its archive: it is looked up without the archive, then with it, then with both
    `place` and archive.
    """
    if index is None:
        yield from refs
        return
    checksums, found, num_unnamed = read_published_checksums(index), Counter[str](), 0
    for ref in refs:
        archive, slash, name = ref.name.partition("/") if in_archives else ("", "", ref.name)
        inside = f"{archive}{slash}{name.removeprefix('./')}"
        names = (
            name.removeprefix(index.folder).removeprefix("./"),
            *([inside] if in_archives else []),
            f"{place}/{inside}",
        )
        known = next(((name, md5s) for name in names if (md5s := checksums.find(name)) is not None), None)
        if known is None:
            num_unnamed += is_photo(ref.name)
            yield ref
            continue
        name, (file_md5, pixel_md5) = known
        found[name.partition("/")[0]] += 1
        yield replace(ref, file_md5=file_md5, pixel_md5=pixel_md5)
    num_absent = sum(checksums.count(layout) - number for layout, number in found.items())
    _warn_once(index.name, num_absent, found.total(), num_unnamed)


@lru_cache(maxsize=2)
def read_published_checksums(index: Index) -> PublishedChecksums:
    """Read a whole index; UsageError if it is damaged or names no photo."""
    checksums = PublishedChecksums()
    try:
        with index.open() as file:
            number = checksums.add(index_rows(file))
    except ValueError as error:
        raise _unusable(index.name, str(error)) from error
    if not number:
        raise _unusable(index.name, "it names no photo")
    return checksums


def check_published(ref: PhotoRef, data: bytes) -> bytes:
    """Return the data if it is the published file, or if its pixels are; else PhotoUnreadableError.

    A photo without published checksums passes. Where only the checksum of the pixels is published, each photo
    is decoded once more, in the sandbox.
    """
    if (
        not (ref.file_md5 or ref.pixel_md5)
        or hashlib.md5(data, usedforsecurity=False).hexdigest() == ref.file_md5
    ):
        return data
    try:
        pixels = run_sandboxed(_pixel_md5, data, returns=str)
    except ImageRefused as error:
        found = str(error)
    else:
        if pixels == ref.pixel_md5:
            return data
        found = pixels.message if isinstance(pixels, WorkerFailure) else "its pixels are others"
    expected = f"MD5 {ref.file_md5}" if ref.file_md5 else f"pixels of MD5 {ref.pixel_md5}"
    raise PhotoUnreadableError(
        f"{ref.name} is not the published photo ({found}); expected {expected}; download it again"
    )


def _pixel_md5(data: bytes) -> str:
    return hashlib.md5(decode(data).pixels.tobytes(), usedforsecurity=False).hexdigest()


@lru_cache(maxsize=16)
def _warn_once(index: str, num_absent: int, num_present: int, num_unnamed: int) -> None:
    """Log once how photos and index differ, which is no error: a source may hold a part of FFHQ, or more."""
    if num_absent or num_unnamed:
        logging.getLogger(__name__).warning(
            "%s: %d of the photos that it names are here, %d are not; %d that are here are not in it and go "
            "unchecked",
            *(index, num_present, num_absent, num_unnamed),
        )


def _unusable(name: str, found: str) -> UsageError:
    return UsageError(
        f"{name} is no whole index of FFHQ ({found}); expected it as published; download it again, or remove "
        "it to go unchecked"
    )
