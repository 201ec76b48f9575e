"""The journal of a restoration: small records, one a unit, and the segments that replace many of them.

A unit's record is written after its outputs. It has a checksum, which finds accidents; whoever forges a
record can compute it. So the names of outputs are checked too: they lie in the output folder, beside this
program's own files.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Final

from diffbfr.documents import decode_json
from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration import segments
from pipelines.restoration.access import file_mode
from pipelines.restoration.outcomes import Outcome, decode_outcome
from pipelines.restoration.request import CONTROL, RestoreRequest, decode_request
from pipelines.restoration.segments import SEGMENTS

COMMITS: Final = f"{CONTROL}/commits"
_MAX_REQUEST_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Committed:
    """Some outcomes as plain values (`segments.COLUMNS`), and the requests that they name.

    `record` is the file of the journal that they come from, relative to the output.
    """

    record: str
    values: Sequence[segments.Values]
    requests: frozenset[RestoreRequest]


@dataclass(frozen=True)
class Damaged:
    """A file of the journal that cannot be used, and why; what was yielded of it before does not count."""

    record: str
    reason: str


@dataclass(frozen=True)
class CommittedUnits:
    """What earlier runs committed, all at once.

    An input may have several outcomes, the newest last. `damaged` are the records that cannot be used.
    """

    outcomes: tuple[Outcome, ...]
    requests: frozenset[RestoreRequest]
    damaged: Mapping[str, str]


def commit_unit(output_uri: str, outcomes: Iterable[Outcome], request: RestoreRequest | None = None) -> None:
    """Write a unit's record, named by a digest of its inputs; a retry with the same inputs overwrites it."""
    unit = list(outcomes)
    record = {
        "request": None if request is None else asdict(request),
        "written": time.time(),
        "outcomes": [asdict(outcome) for outcome in unit],
    }
    place = storage.join(output_uri, record_of(unit))
    mode = storage.FILE_MODE if request is None else file_mode(request.input)
    write_checksummed_json(place, json.loads(json.dumps(record)), within=output_uri, mode=mode)


def record_of(outcomes: Iterable[Outcome]) -> str:
    """The path of a unit's record in the output; it follows from the inputs, so that a retry has the same."""
    inputs = json.dumps([[outcome.row.name, outcome.fingerprint] for outcome in outcomes])
    return f"{COMMITS}/{hashlib.sha256(inputs.encode()).hexdigest()[:20]}.json"


def read_journal(output_uri: str) -> Iterator[Committed | Damaged]:
    """Yield everything that is committed, the small records first.

    A run that replaces records by a segment meanwhile hides nothing: the segments are listed afterwards.
    """
    for name in storage.list_dir(storage.join(output_uri, COMMITS)):
        record = f"{COMMITS}/{name}"
        try:
            request, values = _read_record(storage.join(output_uri, record))
        except FileNotFoundError:  # another run removed it
            continue
        except _DamagedRecordError as error:
            yield Damaged(record, one_line(error))
            continue
        yield Committed(record, values, frozenset([] if request is None else [request]))
    for name in storage.list_dir(storage.join(output_uri, SEGMENTS)):
        yield from _read_segment(output_uri, name)


def read_units(output_uri: str) -> CommittedUnits:
    """Read every committed outcome into memory."""
    units: list[tuple[float, Outcome]] = []
    requests: set[RestoreRequest] = set()
    damaged: dict[str, str] = {}
    for part in read_journal(output_uri):
        if isinstance(part, Damaged):
            damaged[part.record.rpartition("/")[2]] = part.reason
        else:
            units += [(values[0], segments.from_values(values)) for values in part.values]
            requests |= part.requests
    units.sort(key=itemgetter(0))
    return CommittedUnits(tuple(outcome for _, outcome in units), frozenset(requests), damaged)


def replace_records(
    output_uri: str, records: Iterable[str], values: Iterable[segments.Values], request: RestoreRequest
) -> None:
    """Publish a segment with the outcomes of small records, then remove these."""
    plain = json.dumps(asdict(request), sort_keys=True)
    segments.write_segment(output_uri, values, plain, file_mode(request.input))
    for record in records:
        storage.remove_file(storage.join(output_uri, record), within=output_uri)


def remove_damaged(output_uri: str, records: Iterable[str]) -> None:
    """Remove damaged files once their photos have new outcomes, unless one of these has the same name."""
    for record in records:
        place = storage.join(output_uri, record)
        if record.startswith(f"{SEGMENTS}/"):
            storage.remove_file(place, within=output_uri)
            continue
        try:
            _read_record(place)
        except FileNotFoundError:
            continue
        except _DamagedRecordError:
            storage.remove_file(place, within=output_uri)


class _DamagedRecordError(DiffBFRError):
    """A record that cannot be used; the message is the reason."""


def _read_record(uri: str) -> tuple[RestoreRequest | None, list[segments.Values]]:
    """Request and outcomes of a record; `_DamagedRecordError` unless `commit_unit` could write it."""
    try:
        record = read_checksummed_json(uri)
        request = None if record["request"] is None else decode_request(record["request"])
        written = float(record["written"])
        values = [segments.to_values(decode_outcome(row, uri), written) for row in record["outcomes"]]
        json.dumps(values, ensure_ascii=False).encode()  # no name that we write has a lone surrogate
        return request, values
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, UsageError, ShardDamagedError) as error:
        raise _DamagedRecordError(one_line(error)) from error
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise
        raise _DamagedRecordError(error.strerror or one_line(error)) from error


def _read_segment(output_uri: str, name: str) -> Iterator[Committed | Damaged]:
    record = f"{SEGMENTS}/{name}"
    decoded: dict[str, RestoreRequest] = {}
    try:
        for requests, values in segments.read_segment(output_uri, name):
            for text in requests.difference(decoded):
                decoded[text] = decode_request(decode_json(text, _MAX_REQUEST_BYTES))
            yield Committed(record, values, frozenset(decoded[text] for text in requests))
    except (ShardDamagedError, ValueError, TypeError, UsageError) as error:
        yield Damaged(record, one_line(error))
