"""The ledger of a restored archive and its record, written at the end and compared at every rerun."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from diffbfr.errors import DiffBFRError
from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow, stream_rows, write_ledger
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration.face_rows import FACES, FaceRow, write_faces
from pipelines.restoration.outcomes import LEDGER, RECORD

Row = TypeVar("Row")


@dataclass(frozen=True)
class TableRows(Generic[Row]):
    """The rows of a table that is read anew at each iteration, a batch at a time; its length is known.

    `ShardDamagedError` if the table was changed since.
    """

    uri: str
    row_type: type[Row]
    num_rows: int
    sha256: str

    def __iter__(self) -> Iterator[Row]:
        return stream_rows(self.uri, self.row_type, self.sha256) if self.uri else iter(())

    def __len__(self) -> int:
        return self.num_rows


def close_records(
    output: str,
    rows: Callable[[], Iterable[LedgerRow]],
    faces: Callable[[], Iterable[FaceRow]] | None,
    summary: Mapping[str, Any],
    mode: int,
) -> list[str]:
    """Write the tables, then `restore.json` with the summary and the ledger's digest, where they differ.

    `faces` is None for aligned face crops, which have no table of faces. Returns the names of those that were
    there and held something else.
    """
    before = {name for name in (LEDGER, FACES, RECORD) if storage.exists(storage.join(output, name))}
    known = _recorded(output)
    ledger = storage.join(output, LEDGER)
    written = []
    if LEDGER not in before or not _holds(ledger, LedgerRow, rows(), str(known.get("ledger_sha256", ""))):
        write_ledger(ledger, rows(), within=output, mode=mode)
        written.append(LEDGER)
    if faces is not None and (
        FACES not in before or not _holds(storage.join(output, FACES), FaceRow, faces())
    ):
        write_faces(output, faces(), mode)
        written.append(FACES)
    record = {**summary, "ledger": LEDGER, "ledger_sha256": storage.digest(ledger)}
    if known != record:
        # plain values, as they are read back
        plain = json.loads(json.dumps(record))
        write_checksummed_json(storage.join(output, RECORD), plain, within=output, mode=mode)
        written.append(RECORD)
    return [name for name in written if name in before]


def records_problems(
    output: str, rows: Iterable[LedgerRow], faces: Iterable[FaceRow] | None = None
) -> Mapping[str, str]:
    """What is wrong with the ledger and its record, by name; empty if nothing is."""
    known = _recorded(output)
    if not known:
        return {RECORD: "it is missing or damaged"}
    if not _holds(storage.join(output, LEDGER), LedgerRow, rows, str(known.get("ledger_sha256", ""))):
        return {LEDGER: "it is missing, damaged or not what the records of its photos say"}
    if faces is not None and not _holds(storage.join(output, FACES), FaceRow, faces):
        return {FACES: "it is missing, damaged or not what the records of its photos say"}
    return {}


def _holds(table: str, row_type: type[Any], rows: Iterable[Any], sha256: str = "") -> bool:
    """Whether a table holds these rows and no others."""
    with contextlib.suppress(DiffBFRError, OSError):
        return all(found == row for found, row in zip_longest(stream_rows(table, row_type, sha256), rows))
    return False


def _recorded(output: str) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ShardDamagedError):
        return read_checksummed_json(storage.join(output, RECORD))
    return {}
