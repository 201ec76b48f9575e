"""The outcomes of a restoration, one for each input, from which a later run resumes.

An outcome is current as long as its input is unchanged and its output has the recorded size. A failed outcome
is never current, so the same command retries it. `pipelines.restoration.journal` commits them.
"""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from diffbfr.spec import from_dict
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.face_rows import FACES, FaceRow
from pipelines.restoration.request import CONTROL as CONTROL
from pipelines.sources import PhotoRef

LEDGER: Final = "ledger.parquet"
RECORD: Final = "restore.json"
PAGE: Final = "report.html"
OWN_NAMES: Final = frozenset((CONTROL, LEDGER, FACES, RECORD, PAGE))
"""Names in the output folder, in lower case, that no restored photo can have."""

UNREADABLE: Final = "unreadable"
"""Reason of an input whose bytes could not be read; a later run tries it again."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_INT: Final = (1 << 63) - 1
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


def check_output_name(name: str, where: str) -> None:
    """ValueError unless a name is a path inside the output folder that is not one of our own files."""
    storage.check_key(name, where)
    if name.split("/")[0].casefold() in OWN_NAMES:
        raise ValueError(f"{where} names {name!r}, a file of its own; expected a restored photo")


def check_output(name: str, sha256: str, where: str) -> None:
    """ValueError unless a file has a name as of `check_output_name` and a digest."""
    check_output_name(name, where)
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"the sha256 of {name!r} is {sha256!r}; expected 64 hex digits")


def decode_outcome(value: Any, where: str) -> Outcome:
    """An outcome from plain values; ValueError, KeyError or TypeError unless a run could have written it."""
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
        check_output(file.name, file.sha256, where)
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
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise ValueError(f"{field} is {value}; expected at most {_MAX_INT}")
