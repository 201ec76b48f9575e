"""What is listed, committed and left of an archive, in a SQLite file in the temporary folder of this machine.

The driver's memory holds a page of it and the tasks in flight, however many photos there are. The file is
made from the listing and the journal at each run, and nobody needs it after a crash.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, Self

from diffbfr.errors import DiffBFRError
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.outcomes import UNREADABLE, Outcome
from pipelines.restoration.output_names import Naming, OutputNamer
from pipelines.restoration.segments import (
    COLUMNS,
    Values,
    from_values,
    read_face_rows,
    read_others,
    row_of,
    to_values,
)
from pipelines.restoration.work import skipped_row
from pipelines.sources import PhotoRef
from pipelines.sources.listing_db import open_listing_db

_PAGE: Final = 1024
"""Rows that are read at once, so that the tables may change between two pages."""
_SCHEMA: Final = f"""
    CREATE TABLE photo (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, ref TEXT NOT NULL, bytes INTEGER NOT NULL,
        fingerprint TEXT NOT NULL, skipped TEXT NOT NULL,
        outcome INTEGER, output TEXT, digest TEXT, original INTEGER
    );
    CREATE TABLE outcome (seq INTEGER PRIMARY KEY, {", ".join(COLUMNS)});
    CREATE TABLE other_file (outcome INTEGER, name TEXT NOT NULL, num_bytes INTEGER, sha256 TEXT);
    CREATE TABLE found (path TEXT PRIMARY KEY, num_bytes INTEGER) WITHOUT ROWID;
    CREATE TABLE shared_size (bytes INTEGER PRIMARY KEY);
    CREATE TABLE original (digest TEXT PRIMARY KEY, photo INTEGER) WITHOUT ROWID;
"""
_VALUES: Final = ", ".join(f"o.{name}" for name in COLUMNS)
_INSERT: Final = f"INSERT INTO outcome VALUES (NULL, {', '.join('?' * len(COLUMNS))})"
_OTHERS: Final = COLUMNS.index("others")
_CURRENT: Final = f"""
    o.status != 'failed' AND o.reason != '{UNREADABLE}' AND o.fingerprint = photo.fingerprint
    AND (o.output = '' OR (
        o.output_bytes IS (SELECT num_bytes FROM found WHERE path = o.output)
        AND (o.others = '' OR NOT EXISTS (
            SELECT 1 FROM other_file f LEFT JOIN found ON found.path = f.name
            WHERE f.outcome = o.seq AND found.num_bytes IS NOT f.num_bytes))))
"""
"""As `Outcome.is_current`."""
_LEFT: Final = "skipped = '' AND outcome IS NULL"
_TO_COMPARE: Final = f"{_LEFT} AND digest IS NULL AND bytes IN shared_size"
_ref_values: Final = attrgetter(*(field.name for field in fields(PhotoRef)))


class ArchiveIndex(AbstractContextManager["ArchiveIndex"]):
    """The photos of an archive, with the outcome of each; a context manager that removes its file."""

    def __init__(self) -> None:
        self._opened = open_listing_db()

    def __enter__(self) -> Self:
        self._db = self._opened.__enter__()
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA cache_size = -32768")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    # ---- what is there

    def list_photos(self, refs: Iterable[PhotoRef]) -> None:
        """Take over a listing, sorted by name."""
        self._db.executemany(
            "INSERT INTO photo (name, ref, bytes, fingerprint, skipped) VALUES (?, ?, ?, ?, ?)",
            (
                (ref.name, json.dumps(_ref_values(ref)), ref.bytes, ref.fingerprint, ref.skipped)
                for ref in refs
            ),
        )
        self._db.execute("CREATE UNIQUE INDEX photo_by_name ON photo (name)")

    def add_known(self, values: Iterable[Values]) -> None:
        """Add outcomes that earlier runs committed."""
        first = self.last_outcome()
        self._db.executemany(_INSERT, values)
        self._split_others(first)

    def last_outcome(self) -> int:
        """The number of the outcome that was added last; 0 before the first."""
        return int(self._one("SELECT coalesce(max(seq), 0) FROM outcome"))

    def forget_known(self, first: int) -> None:
        """Remove the outcomes that were added after `first`."""
        self._db.execute("DELETE FROM outcome WHERE seq > ?", (first,))
        self._db.execute("DELETE FROM other_file WHERE outcome > ?", (first,))

    def find_files(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Take over the files of the output folder; one with a name that is no Unicode is nobody's output."""
        self._db.executemany(
            "INSERT OR REPLACE INTO found VALUES (?, ?)", (file for file in sizes if _is_unicode(file[0]))
        )

    # ---- which outcomes count

    def choose_current(self) -> None:
        """Give each photo its newest outcome that is current."""
        self._db.execute("CREATE INDEX IF NOT EXISTS outcome_by_name ON outcome (name)")
        self._db.execute("CREATE INDEX IF NOT EXISTS other_file_of ON other_file (outcome)")
        self._choose(_CURRENT)

    def choose_newest(self) -> None:
        """Give each photo its newest outcome that is current, else its newest."""
        self.choose_current()
        self._choose("true")

    def _choose(self, condition: str) -> None:
        self._db.execute(
            "UPDATE photo SET outcome = (SELECT o.seq FROM outcome o WHERE o.name = photo.name "
            f"AND {condition} ORDER BY o.written DESC, o.seq DESC LIMIT 1) WHERE {_LEFT}"
        )

    def unreadable(self) -> Iterator[tuple[int, PhotoRef, int]]:
        """Yield the photos that are left because they could not be read: id, photo, and that outcome."""
        query = (
            "SELECT photo.id, max(o.seq) FROM photo JOIN outcome o ON o.name = photo.name "
            f"WHERE {_LEFT} AND o.reason = '{UNREADABLE}' AND o.fingerprint = photo.fingerprint "
            "AND photo.id > ? GROUP BY photo.id ORDER BY photo.id LIMIT ?"
        )
        for photo, outcome in self._paged(query):
            yield photo, self._ref(photo), outcome

    def set_outcome(self, photo: int, outcome: int | None) -> None:
        """Let an outcome count for a photo, or none."""
        self._db.execute("UPDATE photo SET outcome = ? WHERE id = ?", (outcome, photo))

    def invalidate(self, names: Iterable[str]) -> None:
        """Let no outcome count for these photos."""
        self._db.executemany("UPDATE photo SET outcome = NULL WHERE name = ?", ((name,) for name in names))

    # ---- what is left

    def num_left(self) -> int:
        """The number of photos without an outcome."""
        return int(self._one(f"SELECT count(*) FROM photo WHERE {_LEFT}"))

    def refs_left(self) -> Iterator[PhotoRef]:
        """Yield the photos without an outcome, in order."""
        query = f"SELECT id, ref FROM photo WHERE {_LEFT} AND id > ? ORDER BY id LIMIT ?"
        for _, ref in self._paged(query):
            yield _decode_ref(ref)

    def num_to_restore(self) -> int:
        """The number of photos without an outcome that are no duplicates."""
        return int(self._one(f"SELECT count(*) FROM photo WHERE {_LEFT} AND original IS NULL"))

    def assign_outputs(self, prefix: str, naming: Naming) -> None:
        """Give each photo that is left the name of its output, in the folder `prefix` of the output."""
        taken = (output.removeprefix(prefix) for output in self._outputs())
        namer = OutputNamer(self._db, naming, taken, self._names("skipped = ''"))
        query = f"SELECT id, name FROM photo WHERE {_LEFT} AND id > ? ORDER BY id LIMIT ?"
        for photo, name in self._paged(query):
            output = f"{prefix}{namer.assign(name)}"
            self._db.execute("UPDATE photo SET output = ? WHERE id = ?", (output, photo))

    def _names(self, which: str) -> Iterator[str]:
        query = f"SELECT id, name FROM photo WHERE {which} AND id > ? ORDER BY id LIMIT ?"
        for _, name in self._paged(query):
            yield name

    def _outputs(self) -> Iterator[str]:
        """Yield the outputs of the outcomes that count."""
        query = (
            "SELECT photo.id, o.output FROM photo JOIN outcome o ON o.seq = photo.outcome "
            "WHERE o.output != '' AND photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, output in self._paged(query):
            yield output

    def count_same_size(self) -> int:
        """The number of photos that `same_size` is to yield; to be called before it."""
        self._db.execute("DELETE FROM shared_size")
        self._db.execute(
            "INSERT INTO shared_size SELECT bytes FROM photo WHERE skipped = '' GROUP BY bytes "
            "HAVING count(*) > 1"
        )
        return int(self._one(f"SELECT count(*) FROM photo WHERE {_TO_COMPARE}"))

    def same_size(self) -> Iterator[tuple[int, PhotoRef]]:
        """Yield the photos that are left, have the size of another, and were not compared yet."""
        query = f"SELECT id, ref FROM photo WHERE {_TO_COMPARE} AND id > ? ORDER BY id LIMIT ?"
        for photo, ref in self._paged(query):
            yield photo, _decode_ref(ref)

    def set_digests(self, digests: Iterable[tuple[int, str]]) -> None:
        """Note the sha256 of photos; "" for one that cannot be read."""
        self._db.executemany(
            "UPDATE photo SET digest = ? WHERE id = ?", ((digest, photo) for photo, digest in digests)
        )

    def find_duplicates(self) -> None:
        """Find the original of each photo that is left and has the bytes of another.

        It is one that is finished, else the first in the listing.
        """
        left = f"{_LEFT} AND digest != ''"
        self._db.execute("DELETE FROM original")
        self._db.execute("CREATE INDEX IF NOT EXISTS photo_by_digest ON photo (digest) WHERE digest != ''")
        self._db.execute(
            "INSERT OR IGNORE INTO original SELECT o.sha256, photo.id FROM photo JOIN outcome o "
            "ON o.seq = photo.outcome WHERE o.sha256 != '' AND o.duplicate_of = '' "
            f"AND o.sha256 IN (SELECT digest FROM photo WHERE {left}) ORDER BY photo.id"
        )
        self._db.execute(
            f"INSERT OR IGNORE INTO original SELECT digest, id FROM photo WHERE {left} ORDER BY id"
        )
        self._db.execute(
            "UPDATE photo SET original = (SELECT nullif(original.photo, photo.id) FROM original "
            f"WHERE original.digest = photo.digest) WHERE {left}"
        )

    def finished_originals(self) -> Iterator[Outcome]:
        """Yield the outcomes of earlier runs that a duplicate is to be copied from."""
        query = (
            f"SELECT photo.id, {_VALUES} FROM photo JOIN outcome o ON o.seq = photo.outcome "
            "JOIN original ON original.digest = o.sha256 AND original.photo = photo.id "
            "WHERE photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, *values in self._paged(query):
            yield from_values(tuple(values))

    def to_restore(self, window: int) -> Iterator[list[tuple[PhotoRef, str]]]:
        """Yield what is left and no duplicate, with its output, `window` photos at a time, in order."""
        query = (
            f"SELECT id, ref, output FROM photo WHERE {_LEFT} AND original IS NULL AND id > ? "
            "ORDER BY id LIMIT ?"
        )
        for page in self._pages(query, window):
            yield [(_decode_ref(ref), output) for _, ref, output in page]

    def duplicates(self) -> Iterator[tuple[PhotoRef, str, LedgerRow]]:
        """Yield the duplicates that are left, with their output and the row of their original."""
        query = (
            f"SELECT photo.id, photo.ref, photo.output, {_VALUES} FROM photo JOIN photo first "
            "ON first.id = photo.original JOIN outcome o ON o.seq = first.outcome "
            "WHERE photo.outcome IS NULL AND photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, ref, output, *values in self._paged(query):
            yield _decode_ref(ref), output, row_of(tuple(values))

    # ---- what became of it

    def add(self, outcomes: Iterable[Outcome], written: float) -> None:
        """Add the outcomes of a unit of this run, which then count for their photos."""
        for outcome in outcomes:
            seq = self._db.execute(_INSERT, to_values(outcome, written)).lastrowid
            self._db.execute("UPDATE photo SET outcome = ? WHERE name = ?", (seq, outcome.row.name))
            self._split_others((seq or 1) - 1)

    def values_between(self, first: int, last: int) -> Iterator[Values]:
        """Yield the outcomes that were added after `first`, up to `last`."""
        query = f"SELECT o.seq, {_VALUES} FROM outcome o WHERE o.seq > ? ORDER BY o.seq LIMIT ?"
        for seq, *values in self._paged(query, first):
            if seq > last:
                return
            yield tuple(values)

    def require_complete(self) -> None:
        """Raise an error (a bug) if a photo has no outcome: the ledger would hide that it was lost."""
        lost = self._db.execute(f"SELECT name FROM photo WHERE {_LEFT} ORDER BY id LIMIT 1").fetchone()
        if lost is not None:
            raise DiffBFRError(
                f"{self.num_left()} inputs have no outcome (first: {lost[0]}); expected one each; "
                "this is a bug of diffbfr: report it"
            )

    def photos(self) -> Iterator[tuple[PhotoRef, Outcome | None]]:
        """Yield every photo that is not skipped, with the outcome that counts for it."""
        query = (
            f"SELECT photo.id, photo.ref, photo.outcome, {_VALUES} FROM photo LEFT JOIN outcome o "
            "ON o.seq = photo.outcome WHERE photo.skipped = '' AND photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, ref, outcome, *values in self._paged(query):
            yield _decode_ref(ref), None if outcome is None else from_values(tuple(values))

    def rows(self) -> Iterator[LedgerRow]:
        """Yield the ledger: a row for each input that has an outcome or is skipped, in order."""
        query = (
            f"SELECT photo.id, photo.skipped, photo.ref, {_VALUES} FROM photo LEFT JOIN outcome o "
            "ON o.seq = photo.outcome WHERE (photo.skipped != '' OR photo.outcome IS NOT NULL) "
            "AND photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, skipped, ref, *values in self._paged(query):
            yield skipped_row(_decode_ref(ref)) if skipped else row_of(tuple(values))

    def faces(self) -> Iterator[FaceRow]:
        """Yield the rows of the faces of all photos, in order."""
        query = (
            "SELECT photo.id, o.faces FROM photo JOIN outcome o ON o.seq = photo.outcome "
            "WHERE o.faces != '' AND photo.id > ? ORDER BY photo.id LIMIT ?"
        )
        for _, faces in self._paged(query):
            yield from read_face_rows(faces)

    def num_inputs(self) -> int:
        """The number of inputs, with those that are skipped."""
        return int(self._one("SELECT count(*) FROM photo"))

    def num_photos(self) -> int:
        """The number of photos, which are the inputs that are not skipped."""
        return int(self._one("SELECT count(*) FROM photo WHERE skipped = ''"))

    def counts(self) -> Mapping[str, int]:
        """The number of inputs by status."""
        query = (
            "SELECT CASE WHEN photo.skipped != '' THEN 'skipped' ELSE o.status END, count(*) FROM photo "
            "LEFT JOIN outcome o ON o.seq = photo.outcome GROUP BY 1"
        )
        return dict(self._db.execute(query))

    def seconds(self) -> float:
        """The time that the photos took, summed."""
        query = "SELECT total(o.seconds) FROM photo JOIN outcome o ON o.seq = photo.outcome"
        return float(self._one(query))

    def num_faces(self) -> int:
        """The number of rows of `faces`."""
        query = (
            "SELECT total(json_array_length(o.faces)) FROM photo JOIN outcome o ON o.seq = photo.outcome "
            "WHERE o.faces != ''"
        )
        return int(self._one(query))

    def outdated_files(self) -> Iterator[str]:
        """Yield the files of outcomes that do not count any more, unless one that does has the name."""
        self._db.execute("CREATE TABLE outdated (name TEXT PRIMARY KEY) WITHOUT ROWID")
        replaced = "photo.skipped = '' AND photo.outcome IS NOT NULL AND photo.outcome != o.seq"
        self._db.execute(
            "INSERT OR IGNORE INTO outdated SELECT o.output FROM outcome o JOIN photo "
            f"ON photo.name = o.name WHERE {replaced} AND o.output != ''"
        )
        self._db.execute(
            "INSERT OR IGNORE INTO outdated SELECT f.name FROM other_file f JOIN outcome o "
            f"ON o.seq = f.outcome JOIN photo ON photo.name = o.name WHERE {replaced}"
        )
        if self._one("SELECT count(*) FROM outdated"):
            counts = "IN (SELECT outcome FROM photo WHERE outcome IS NOT NULL)"
            self._db.execute(
                "DELETE FROM outdated WHERE name IN (SELECT output FROM outcome "
                f"WHERE seq {counts}) OR name IN (SELECT name FROM other_file WHERE outcome {counts})"
            )
        for (name,) in self._db.execute("SELECT name FROM outdated ORDER BY name"):
            yield name

    def lost_inputs(self) -> Iterator[str]:
        """Yield the names of inputs that have an outcome and are not listed any more, sorted."""
        query = (
            "SELECT DISTINCT name FROM outcome WHERE NOT EXISTS (SELECT 1 FROM photo "
            "WHERE photo.name = outcome.name) ORDER BY name"
        )
        for (name,) in self._db.execute(query):
            yield name

    # ---- the database

    def _split_others(self, first: int) -> None:
        """Put the further files of the outcomes after `first` into their table."""
        query = "SELECT seq, others FROM outcome WHERE seq > ? AND others != ''"
        for seq, others in self._db.execute(query, (first,)).fetchall():
            self._db.executemany(
                "INSERT INTO other_file VALUES (?, ?, ?, ?)",
                ((seq, file.name, file.num_bytes, file.sha256) for file in read_others(others)),
            )

    def _ref(self, photo: int) -> PhotoRef:
        (ref,) = self._db.execute("SELECT ref FROM photo WHERE id = ?", (photo,)).fetchone()
        return _decode_ref(ref)

    def _one(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    def _paged(self, query: str, after: int = 0) -> Iterator[tuple[Any, ...]]:
        for page in self._pages(query, _PAGE, after):
            yield from page

    def _pages(self, query: str, size: int, after: int = 0) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of a query that takes the last id before a page and the size of a page."""
        while page := self._db.execute(query, (after, size)).fetchall():
            yield page
            after = page[-1][0]


def _decode_ref(text: str) -> PhotoRef:
    return PhotoRef(*json.loads(text))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
