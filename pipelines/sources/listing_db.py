"""A temporary SQLite database that sorts listings, so that memory does not grow with the photos."""

import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from pipelines.sources.source import PhotoRef

_CACHE_KB: Final = 8192
_values: Final = attrgetter(*(field.name for field in fields(PhotoRef)))  # `astuple` would copy each deeply


@contextlib.contextmanager
def open_listing_db() -> Iterator[sqlite3.Connection]:
    """Open an empty database in a temporary file, which is removed with the context."""
    with tempfile.TemporaryDirectory(prefix="diffbfr-listing-") as folder, closing(_connect(folder)) as db:
        db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        # no other process opens the file, and nobody needs it after a crash
        for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            db.execute(f"PRAGMA {setting}")
        yield db


def _connect(folder: str) -> sqlite3.Connection:
    """Connect without the check of threads: the garbage collector may close a generator in any thread."""
    return sqlite3.connect(Path(folder) / "listing.db", check_same_thread=False)


def sort_refs(refs: Iterable[PhotoRef], in_order: bool = True) -> Iterator[PhotoRef]:
    """Yield the photos sorted by name, after all were read; a repeated name gets `#2` at its second use.

    If the photos are not `in_order`, as members of an archive are, a repeated name is a UsageError, because
    nothing determines which use is the second.
    """
    with open_listing_db() as db:
        db.execute("CREATE TABLE photo (name TEXT PRIMARY KEY, ref TEXT) WITHOUT ROWID")
        db.execute("CREATE TABLE repeated (name TEXT PRIMARY KEY, uses INTEGER) WITHOUT ROWID")
        for ref in refs:
            shown = ref
            while not db.execute(
                "INSERT OR IGNORE INTO photo VALUES (?, ?)", (shown.name, json.dumps(_values(shown)))
            ).rowcount:
                if not in_order:
                    raise UsageError(
                        f"{ref.uri} is listed as {ref.name!r}, like another file; expected each name once; "
                        "rename it"
                    )
                # the uses of a name are counted, so that each number is tried once
                (use,) = db.execute(
                    "INSERT INTO repeated VALUES (?, 2) ON CONFLICT (name) DO UPDATE SET uses = uses + 1 "
                    "RETURNING uses",
                    (ref.name,),
                ).fetchone()
                shown = replace(ref, name=f"{ref.name}#{use}")
        for (row,) in db.execute("SELECT ref FROM photo ORDER BY name"):
            yield PhotoRef(*json.loads(row))
