"""The committed outcomes of a restoration, one for each input, from which a later run resumes.

Outcomes are committed in units of a few photos. A unit's record is written after its outputs. An outcome is
current as long as its input is unchanged and its output has the recorded size. A failed outcome is never
current, so the same command retries it.

A record has a checksum, which finds accidents; whoever forges a record can compute it. So the names of
outputs are checked too: they lie in the output folder, beside this program's own files.
"""

import hashlib
import json
import re
import time
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.spec import from_dict
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.restoration.access import file_mode
from pipelines.restoration.face_rows import FACES, FaceRow
from pipelines.restoration.request import CONTROL as CONTROL
from pipelines.restoration.request import RestoreRequest, decode_request
from pipelines.sources import PhotoRef

LEDGER: Final = "ledger.parquet"
RECORD: Final = "restore.json"
PAGE: Final = "report.html"
OWN_NAMES: Final = frozenset((CONTROL, LEDGER, FACES, RECORD, PAGE))
"""Names in the output folder, in lower case, that no restored photo can have."""

UNREADABLE: Final = "unreadable"
"""Reason of an input whose bytes could not be read; a later run tries it again."""

_COMMITS: Final = f"{CONTROL}/commits"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final[Mapping[str, Any]] = typing.get_type_hints(LedgerRow)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of a restored photo; `name` is relative to the output."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ledger row, with the input's fingerprint and the output's size, which show whether it is current.

    `others` are the further files if there are several samples, `faces` the rows of a whole photo's faces.
    """

    row: LedgerRow
    fingerprint: str
    output_bytes: int
    others: tuple[OutputFile, ...] = ()
    faces: tuple[FaceRow, ...] = ()

    def is_current(self, ref: PhotoRef, output_sizes: Mapping[str, int]) -> bool:
        """Whether this input, as it is listed now, needs no more work."""
        if (
            self.row.status == "failed"
            or self.row.reason == UNREADABLE
            or self.fingerprint != ref.fingerprint
        ):
            return False
        return all(output_sizes.get(file.name) == file.num_bytes for file in self.files())

    def files(self) -> tuple[OutputFile, ...]:
        """Every output file; empty if nothing was restored."""
        if not self.row.output:
            return ()
        return (OutputFile(self.row.output, self.output_bytes, self.row.output_sha256), *self.others)


@dataclass(frozen=True)
class CommittedUnits:
    """What earlier runs committed.

    An input may have several outcomes, the newest last. `requests` are those that the records
    name, `damaged` the records that cannot be used, with the reason.
    """

    outcomes: tuple[Outcome, ...]
    requests: frozenset[RestoreRequest]
    damaged: Mapping[str, str]


def commit_unit(output_uri: str, outcomes: Iterable[Outcome], request: RestoreRequest | None = None) -> None:
    """Write a unit's record, named by a digest of its inputs; a retry with the same inputs overwrites it."""
    rows = [asdict(outcome) for outcome in outcomes]
    # the name follows from the inputs, so that a retry writes to the same record
    inputs = json.dumps([[row["row"]["name"], row["fingerprint"]] for row in rows])
    unit = hashlib.sha256(inputs.encode()).hexdigest()[:20]
    record = {
        "request": None if request is None else asdict(request),
        "written": time.time(),
        "outcomes": rows,
    }
    place = storage.join(output_uri, _COMMITS, f"{unit}.json")
    mode = storage.FILE_MODE if request is None else file_mode(request.input)
    write_checksummed_json(place, json.loads(json.dumps(record)), within=output_uri, mode=mode)


def read_units(output_uri: str) -> CommittedUnits:
    """Read every committed outcome; a record that is damaged, or names a file elsewhere, is named as such."""
    units: list[tuple[float, list[Outcome]]] = []
    requests: set[RestoreRequest] = set()
    damaged: dict[str, str] = {}
    for name in storage.list_dir(storage.join(output_uri, _COMMITS)):
        try:
            written, request, unit = _read_unit(storage.join(output_uri, _COMMITS, name))
        except FileNotFoundError:  # another run removed it
            continue
        except _DamagedRecordError as error:
            damaged[name] = one_line(error)
            continue
        units.append((written, unit))
        requests.update([] if request is None else [request])
    units.sort(key=itemgetter(0))
    outcomes = chain.from_iterable(unit for _, unit in units)
    return CommittedUnits(tuple(outcomes), frozenset(requests), damaged)


def remove_damaged(output_uri: str, names: Iterable[str]) -> None:
    """Remove damaged records once their photos have new ones, unless one of these has the same name."""
    for name in names:
        place = storage.join(output_uri, _COMMITS, name)
        try:
            _read_unit(place)
        except FileNotFoundError:
            continue
        except _DamagedRecordError:
            storage.remove_file(place, within=output_uri)


def check_output_name(name: str, where: str) -> None:
    """ValueError unless a name is a path inside the output folder that is not one of our own files."""
    storage.check_key(name, where)
    if name.split("/")[0].casefold() in OWN_NAMES:
        raise ValueError(f"{where} names {name!r}, a file of its own; expected a restored photo")


class _DamagedRecordError(DiffBFRError):
    """A record that cannot be used; the message is the reason."""


def _read_unit(uri: str) -> tuple[float, RestoreRequest | None, list[Outcome]]:
    """Time, request and outcomes of a record; `_DamagedRecordError` unless `commit_unit` could write it."""
    try:
        record = read_checksummed_json(uri)
        request = None if record["request"] is None else decode_request(record["request"])
        return float(record["written"]), request, [_decode(row, uri) for row in record["outcomes"]]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, UsageError, ShardDamagedError) as error:
        raise _DamagedRecordError(one_line(error)) from error
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise
        raise _DamagedRecordError(error.strerror or one_line(error)) from error


def _decode(value: Any, where: str) -> Outcome:
    """An outcome from plain values; ValueError, KeyError or TypeError unless `commit_unit` could write it."""
    others = tuple(OutputFile(**other) for other in value["others"])
    row = LedgerRow(**value["row"])
    for field, kind in _FIELDS.items():
        _check_type(getattr(row, field), kind, field)
    # records of versions that restored aligned faces alone have no faces
    faces = tuple(from_dict(FaceRow, face) for face in value.get("faces", ()))
    outcome = Outcome(row, value["fingerprint"], value["output_bytes"], others, faces)
    _check_type(outcome.fingerprint, str, "fingerprint")
    for file in outcome.files():
        _check_type(file.name, str, "output")
        _check_type(file.num_bytes, int, "output_bytes")
        check_output_name(file.name, where)
        if not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"the sha256 of {file.name!r} is {file.sha256!r}; expected 64 hex digits")
    if not row.output and outcome.others:
        raise ValueError(f"{row.name!r} has files and no output; expected none")
    return outcome


def _check_type(value: object, kind: Any, field: str) -> None:
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{field} is {value!r}; expected one of {', '.join(typing.get_args(kind))}")
    elif kind in (str, int, float, bool):
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{field} is {value!r}; expected {kind.__name__}")
