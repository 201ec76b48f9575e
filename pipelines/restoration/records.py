"""The ledger of a restored archive and its record, written at the end and compared at every rerun."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from diffbfr.errors import DiffBFRError
from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow, read_ledger, write_ledger
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration.face_rows import FACES, FaceRow, read_faces, write_faces
from pipelines.restoration.outcomes import LEDGER, RECORD


def close_records(
    output: str,
    rows: Sequence[LedgerRow],
    faces: Sequence[FaceRow] | None,
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
    if LEDGER not in before or not _holds(ledger, rows, str(known.get("ledger_sha256", ""))):
        write_ledger(ledger, rows, within=output, mode=mode)
        written.append(LEDGER)
    if faces is not None and (FACES not in before or not _holds_faces(output, faces)):
        write_faces(output, faces, mode)
        written.append(FACES)
    record = {**summary, "ledger": LEDGER, "ledger_sha256": storage.digest(ledger)}
    if known != record:
        # plain values, as they are read back
        plain = json.loads(json.dumps(record))
        write_checksummed_json(storage.join(output, RECORD), plain, within=output, mode=mode)
        written.append(RECORD)
    return [name for name in written if name in before]


def records_problems(
    output: str, rows: Sequence[LedgerRow], faces: Sequence[FaceRow] | None = None
) -> Mapping[str, str]:
    """What is wrong with the ledger and its record, by name; empty if nothing is."""
    known = _recorded(output)
    if not known:
        return {RECORD: "it is missing or damaged"}
    if not _holds(storage.join(output, LEDGER), rows, str(known.get("ledger_sha256", ""))):
        return {LEDGER: "it is missing, damaged or not what the records of its photos say"}
    if faces is not None and not _holds_faces(output, faces):
        return {FACES: "it is missing, damaged or not what the records of its photos say"}
    return {}


def _holds_faces(output: str, faces: Sequence[FaceRow]) -> bool:
    with contextlib.suppress(DiffBFRError, OSError):
        return read_faces(output) == list(faces)
    return False


def _holds(ledger: str, rows: Sequence[LedgerRow], sha256: str) -> bool:
    with contextlib.suppress(DiffBFRError, OSError):
        return read_ledger(ledger) == list(rows) and sha256 in ("", storage.digest(ledger))
    return False


def _recorded(output: str) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ShardDamagedError):
        return read_checksummed_json(storage.join(output, RECORD))
    return {}
