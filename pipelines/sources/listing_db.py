"""Listings on disk: what is spooled to a file beside the driver comes back sorted, and its memory does not
grow with the photos.
"""

import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError
from pipelines.sources.source import PhotoRef

_CACHE_KB: Final = 8192


@contextlib.contextmanager
def open_listing_db() -> Iterator[sqlite3.Connection]:
    """Open an empty database in a temporary file that ends with the context."""
    with tempfile.TemporaryDirectory(prefix="diffbfr-listing-") as folder, closing(_connect(folder)) as spool:
        spool.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        for speed in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "temp_store = FILE",
        ):  # the spool is nobody's but ours
            spool.execute(f"PRAGMA {speed}")
        yield spool


def _connect(folder: str) -> sqlite3.Connection:
    return sqlite3.connect(
        Path(folder) / "spool", check_same_thread=False
    )  # any thread may be the one that lets go of it


def sort_refs(refs: Iterable[PhotoRef], in_order: bool = True) -> Iterator[PhotoRef]:
    """Yield the photos sorted by name, after the last has come; a name used twice gets `#2` at its second
    use.

    Unless they are `in_order`, as members of an archive are, nothing says which use is the second:
    UsageError.
    """
    with open_listing_db() as spool:
        spool.execute("CREATE TABLE photo (name TEXT PRIMARY KEY, ref TEXT) WITHOUT ROWID")
        for ref in refs:
            shown, use = ref, 1
            while not spool.execute(
                "INSERT OR IGNORE INTO photo VALUES (?, ?)", (shown.name, json.dumps(astuple(shown)))
            ).rowcount:
                if not in_order:
                    raise UsageError(
                        f"{ref.uri} is listed as {ref.name!r}, like another file; expected each name once; "
                        "rename it"
                    )
                use += 1
                shown = replace(ref, name=f"{ref.name}#{use}")
        for (row,) in spool.execute("SELECT ref FROM photo ORDER BY name"):
            yield PhotoRef(*json.loads(row))
