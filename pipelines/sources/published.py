"""What FFHQ's publisher says of each file: `ffhq-dataset-v2.json` with the MD5 of every file and of its
pixels.

The index is a quarter of a gigabyte: it is parsed an entry at a time, to its last brace, and kept on disk.
"""

import hashlib
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import IO, Final

from diffbfr.errors import UsageError
from diffbfr.images import ImageRefused, decode
from pipelines import storage
from pipelines.sources.ffhq_index import index_rows
from pipelines.sources.listing_db import open_listing_db
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.sources.source import PhotoRef, PhotoUnreadableError, is_photo

INDEX: Final = "ffhq-dataset-v2.json"
_MD5: Final = re.compile(r"[0-9a-f]{32}|")


@dataclass(frozen=True)
class Index:
    """Where an index lies: `folder` is what photos beside it have before the names that it gives them."""

    name: str
    version: str
    folder: str = ""
    open: Callable[[], AbstractContextManager[IO[bytes]]] = field(compare=False, kw_only=True)


class PublishedChecksums:
    """What an index says, on disk: (file_md5, pixel_md5) by path, such as
    `images1024x1024/00000/00000.png`.
    """

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._spool: sqlite3.Connection = self._closing.enter_context(open_listing_db())
        self._spool.execute(
            "CREATE TABLE promise (path TEXT PRIMARY KEY, file_md5 TEXT, pixel_md5 TEXT) WITHOUT ROWID"
        )

    def add(self, rows: Iterable[tuple[str, str, str]]) -> int:
        """Add rows of (path, file_md5, pixel_md5); returns how many there are."""
        self._spool.executemany("INSERT OR REPLACE INTO promise VALUES (?, ?, ?)", rows)
        return int(self._spool.execute("SELECT count(*) FROM promise").fetchone()[0])

    def find(self, path: str) -> tuple[str, str] | None:
        """What is promised of a file."""
        found: tuple[str, str] | None = self._spool.execute(
            "SELECT file_md5, pixel_md5 FROM promise WHERE path = ?", (path,)
        ).fetchone()
        return found

    def count(self, layout: str) -> int:
        """How many files the index names in a top folder."""
        after = f"{layout}{chr(ord('/') + 1)}"
        return int(
            self._spool.execute(
                "SELECT count(*) FROM promise WHERE path > ? AND path < ?", (f"{layout}/", after)
            ).fetchone()[0]
        )


def find_index(uri: str) -> str:
    """Return where the index lies that FFHQ's download leaves in a folder or beside it; "" if there is
    none.
    """
    parent = uri.rstrip("/").rpartition("/")[0]
    places = [
        storage.join(place, INDEX)
        for place in (uri, parent)
        if not storage.is_remote(uri) or place.count("/") > 1
    ]
    return next((place for place in places if storage.exists(place)), "")


def index_at(uri: str) -> Index | None:
    """Open the index that `find_index` found; None for ""."""
    return (
        Index(uri, storage.version(uri), open=lambda: storage.open_read(uri, verified=True)) if uri else None
    )


def attach_checksums(
    refs: Iterable[PhotoRef], index: Index | None, place: str, in_archives: bool = False
) -> Iterator[PhotoRef]:
    """Yield the photos with what the index promises of each, and tell at the end of those that only one of
    the two has.

    A photo is looked up by its name, then as one of the folder or archive `place`, of which only a part is
    here. Photos `in_archives` have their archive before their name: they are looked up without it, then as in
    a folder called so, then as in a folder in `place`.
    """
    if index is None:
        yield from refs
        return
    promises, found, unnamed = read_published_checksums(index), Counter[str](), 0
    for ref in refs:
        archive, slash, name = ref.name.partition("/") if in_archives else ("", "", ref.name)
        inside = f"{archive}{slash}{name.removeprefix('./')}"
        names = (
            name.removeprefix(index.folder).removeprefix("./"),
            *([inside] if in_archives else []),
            f"{place}/{inside}",
        )
        known = next(
            ((name, promise) for name in names if (promise := promises.find(name)) is not None), None
        )
        if known is None:
            unnamed += is_photo(ref.name)
            yield ref
            continue
        name, (file_md5, pixel_md5) = known
        found[name.partition("/")[0]] += 1
        yield replace(ref, file_md5=file_md5, pixel_md5=pixel_md5)
    _tell(
        index.name,
        sum(promises.count(layout) - number for layout, number in found.items()),
        found.total(),
        unnamed,
    )


@lru_cache(maxsize=2)
def read_published_checksums(index: Index) -> PublishedChecksums:
    """Read a whole index; UsageError if it is damaged or names no photo."""
    promises = PublishedChecksums()
    try:
        with index.open() as file:
            number = promises.add(index_rows(file))
    except ValueError as error:
        raise _unusable(index.name, str(error)) from error
    if not number:
        raise _unusable(index.name, "it names no photo")
    return promises


def check_published(ref: PhotoRef, data: bytes) -> bytes:
    """Return the data if it is the published file, or another lossless file of the published pixels, or if
    nothing is promised.

    Where only the pixels are promised, each photo is decoded once more, apart.
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
def _tell(index: str, absent: int, present: int, unnamed: int) -> None:
    """Say once how photos and index differ; neither is an error: a part of FFHQ is a source, and so are
    photos beside it.
    """
    if absent or unnamed:
        logging.getLogger(__name__).warning(
            "%s: %d of the photos that it names are here, %d are not; %d that are here are not in it and go "
            "unchecked",
            *(index, present, absent, unnamed),
        )


def _unusable(name: str, found: str) -> UsageError:
    return UsageError(
        f"{name} is no whole index of FFHQ ({found}); expected it as published; download it again, or remove "
        "it to go unchecked"
    )
