"""Segments: the outcomes of many units in one table, named by its sha256, in place of as many small records.

A run of a million photos has 62,500 units. Their records would take minutes to read; as 250 segments they are
read in seconds. A segment is published before the records that it replaces are removed, so that a run which
is killed between the two leaves the same outcome twice, and the newest counts.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, field, fields, make_dataclass, replace
from operator import attrgetter
from typing import Any, Final, get_args, get_type_hints

from diffbfr.errors import UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.spec import from_dict
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow, TableWriter, stream_columns
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.outcomes import Outcome, OutputFile, check_output
from pipelines.restoration.request import CONTROL

SEGMENTS: Final = f"{CONTROL}/segments"

Values = tuple[Any, ...]
"""An outcome as plain values, one for each of `COLUMNS`."""

_STATUSES: Final = frozenset(get_args(get_type_hints(LedgerRow)["status"]))
_LEDGER: Final = tuple(it.name for it in fields(LedgerRow))
_ledger_values: Final = attrgetter(*_LEDGER)
_SUFFIX: Final = ".parquet"
_ROWS_AT_ONCE: Final = 4096


def _of_ledger() -> Iterator[tuple[str, Any, Any]]:
    """The columns of `LedgerRow` as `make_dataclass` takes them."""
    for it in fields(LedgerRow):
        yield it.name, it.type, field() if it.default is MISSING else field(default=it.default)


SegmentRow: Final[type[Any]] = make_dataclass(
    "SegmentRow",
    [
        ("written", float),
        ("request", str),
        ("fingerprint", str),
        ("output_bytes", int),
        ("others", str),
        ("faces", str),
        *_of_ledger(),
    ],
    frozen=True,
    slots=True,
)
"""An outcome in a segment: the columns of its own, and after them those of `LedgerRow`.

`written` is when its unit was committed, in seconds since 1970, `request` the run's request as JSON. `others`
and `faces` are lists as JSON, "" for none.
"""


COLUMNS: Final = tuple(it.name for it in fields(SegmentRow) if it.name != "request")
"""The columns of an outcome, in the order of its `Values`."""
_NUM_BEFORE_LEDGER: Final = len(COLUMNS) - len(_LEDGER)


def to_values(outcome: Outcome, written: float) -> Values:
    """An outcome as plain values, whose texts are valid Unicode."""
    message = outcome.row.message.encode("utf-8", "backslashreplace").decode()
    row = outcome.row if message == outcome.row.message else replace(outcome.row, message=message)
    others = json.dumps([asdict(file) for file in outcome.others]) if outcome.others else ""
    faces = json.dumps([asdict(face) for face in outcome.faces]) if outcome.faces else ""
    return (written, outcome.fingerprint, outcome.output_bytes, others, faces, *_ledger_values(row))


def from_values(values: Values) -> Outcome:
    """The outcome of plain values."""
    _, fingerprint, output_bytes, others, faces = values[:_NUM_BEFORE_LEDGER]
    return Outcome(row_of(values), fingerprint, output_bytes, read_others(others), read_face_rows(faces))


def row_of(values: Values) -> LedgerRow:
    """The ledger row of plain values."""
    return LedgerRow(*values[_NUM_BEFORE_LEDGER:])


def read_others(text: str) -> tuple[OutputFile, ...]:
    """The further files of an outcome."""
    return tuple(OutputFile(**file) for file in json.loads(text)) if text else ()


def read_face_rows(text: str) -> tuple[FaceRow, ...]:
    """The rows of a photo's faces."""
    return tuple(from_dict(FaceRow, face) for face in json.loads(text)) if text else ()


def write_segment(output: str, values: Iterable[Values], request: str, mode: int) -> str:
    """Publish a segment; returns its name."""
    writer = TableWriter("", SegmentRow, output, mode)
    names: list[str] = []

    def place(sha256: str) -> str:
        names.append(f"{sha256}{_SUFFIX}")
        return storage.join(output, SEGMENTS, names[0])

    group: list[Any] = []
    for written, *others in values:
        group.append(SegmentRow(written, request, *others))
        if len(group) == _ROWS_AT_ONCE:
            writer.append(group)
            group.clear()
    writer.append(group)
    writer.close(place)
    return names[0]


def read_segment(output: str, name: str) -> Iterator[tuple[set[str], list[Values]]]:
    """Yield the requests and the outcomes of a segment, some thousands at a time.

    `ShardDamagedError` unless a run could have written it; whoever forges one can name it by its digest.
    """
    place = storage.join(output, SEGMENTS, name)
    sha256 = name.removesuffix(_SUFFIX)
    try:
        # an empty digest would be checked by nobody
        for columns in stream_columns(place, SegmentRow, (*COLUMNS, "request"), sha256 or "none"):
            *columns, requests = columns
            _check(dict(zip(COLUMNS, columns, strict=True)), place)
            yield set(requests), list(zip(*columns, strict=True))
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise ShardDamagedError(one_line(error)) from error
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise
        raise ShardDamagedError(error.strerror or one_line(error)) from error


def _check(columns: dict[str, list[Any]], where: str) -> None:
    """Raise a ValueError, TypeError or KeyError unless `decode_outcome` would take each row."""
    if not _STATUSES.issuperset(columns["status"]):
        raise ValueError(f"a status is not one of {', '.join(sorted(_STATUSES))}")
    outputs = zip(columns["output"], columns["output_sha256"], columns["others"], strict=True)
    for output, sha256, others in outputs:
        if output:
            check_output(output, sha256, where)
        elif others:
            raise ValueError("an outcome has files and no output; expected none")
        for file in read_others(others):
            check_output(file.name, file.sha256, where)
    if any(None in column for column in columns.values()):
        raise ValueError("a value is missing")
