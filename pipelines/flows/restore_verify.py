"""Verify a restored archive: every output, every input and this program's own files are read again.

What differs is named, and noted in the output, so that the next run of the same restoration makes it again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.flows.restore_page import is_page_intact
from pipelines.flows.restore_plan import split_units
from pipelines.restoration.damage import write_damage
from pipelines.restoration.outcomes import PAGE, CommittedUnits, Outcome, read_units
from pipelines.restoration.records import records_problems
from pipelines.restoration.request import CONTROL, REQUEST, RestoreRequest, read_request
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError, open_source
from pipelines.steps.restore import skipped_outcome

_PHOTOS_PER_TASK: Final = 64


@dataclass(frozen=True)
class RestoreProblem:
    """A file that differs from its record: its name (of an input, or in the output), and how it differs."""

    path: str
    message: str


@dataclass(frozen=True)
class RestoreVerification:
    """What was read, and what differs."""

    source: str
    output: str
    inputs: int
    outputs: int
    bytes_read: int
    problems: tuple[RestoreProblem, ...]


def verify_restoration(output_uri: str, cluster: Cluster, source_uri: str = "") -> RestoreVerification:
    """Compare a restored archive with its records, and note the inputs that the next run restores again.

    The input is the one that the output was begun with. UsageError if the folder holds no restoration, or if
    `source_uri` names another input. Inputs that are skipped are not read.
    """
    output = storage.absolute(output_uri)
    storage.reopen_folder(output)
    units = read_units(output)
    request, problems = _find_request(output, units)
    source = open_source(source_uri or request.input, every_file=True)
    if without_secrets(source.uri) != request.input:
        raise UsageError(
            f"{output} was restored from {request.input}, not from {without_secrets(source.uri)}; expected "
            "its own input; leave INPUT out"
        )
    listed = list(source.refs())
    refs = [ref for ref in listed if not ref.skipped]
    sizes = {entry.path: entry.num_bytes for entry in storage.walk(output)}
    outcomes = _latest(refs, units, sizes)

    for name, reason in units.damaged.items():
        problems.append(RestoreProblem(f"{CONTROL}/commits/{name}", reason))
    reports = _check_all(refs, outcomes, source, output, cluster)
    again: set[str] = set()
    for report in reports:
        problems += report.problems
        again.update(report.inputs)
    names = {ref.name for ref in listed}
    for name in sorted({outcome.row.name for outcome in units.outcomes} - names):
        problems.append(RestoreProblem(name, "the input is gone; expected it as it was restored"))
    problems += _check_own_files(output, listed, outcomes, request)
    write_damage(output, again)
    return RestoreVerification(
        source=source.uri,
        output=output,
        inputs=len(listed),
        outputs=sum(report.num_outputs for report in reports),
        bytes_read=sum(report.num_bytes for report in reports),
        problems=tuple(problems),
    )


def require_same(report: RestoreVerification) -> None:
    """Raise an error (exit 1) if something differs."""
    if report.problems:
        first = report.problems[0]
        raise DiffBFRError(
            f"{len(report.problems)} files differ in {report.output} or its input (first: {first.path}: "
            f"{first.message}); the command that restored it makes them again"
        )


def _find_request(output: str, units: CommittedUnits) -> tuple[RestoreRequest, list[RestoreProblem]]:
    """The pinned request, or the one that the units' records name; UsageError if there is neither."""
    problems: list[RestoreProblem] = []
    try:
        pinned = read_request(output)
    except ShardDamagedError as error:
        problems.append(RestoreProblem(REQUEST, one_line(error)))
        pinned = None
    if pinned is None and units.requests:
        problems = problems or [RestoreProblem(REQUEST, "it is missing")]
        pinned = next(iter(units.requests))
    if pinned is None:
        raise UsageError(
            f"{output} holds no restoration; expected the OUTPUT of `diffbfr restore`; name another folder"
        )
    return pinned, problems


def _latest(refs: Sequence[PhotoRef], units: CommittedUnits, sizes: Mapping[str, int]) -> dict[str, Outcome]:
    """The outcome of each input that counts: the newest that is current, else the newest."""
    listed = {ref.name: ref for ref in refs}
    chosen: dict[str, Outcome] = {}
    for outcome in units.outcomes:
        ref = listed.get(outcome.row.name)
        if ref is None:
            continue
        known = chosen.get(ref.name)
        if known is None or outcome.is_current(ref, sizes) or not known.is_current(ref, sizes):
            chosen[ref.name] = outcome
    return chosen


@dataclass(frozen=True)
class _CheckTask:
    index: int
    source: PhotoSource
    output: str
    photos: tuple[tuple[PhotoRef, Outcome | None], ...]


@dataclass(frozen=True)
class _CheckReport:
    """The problems of some photos; `inputs` are those to restore again."""

    problems: tuple[RestoreProblem, ...]
    inputs: tuple[str, ...]
    num_outputs: int
    num_bytes: int


def _check_all(
    refs: Sequence[PhotoRef],
    outcomes: Mapping[str, Outcome],
    source: PhotoSource,
    output: str,
    cluster: Cluster,
) -> list[_CheckReport]:
    photos = [(ref, outcomes.get(ref.name)) for ref in refs]
    units = split_units(photos, _PHOTOS_PER_TASK)
    tasks = [_CheckTask(index, source, output, tuple(unit)) for index, unit in enumerate(units)]
    return list(
        cluster.map(_check, tasks, label="verify", unit="photos", weight=lambda task: len(task.photos))
    )


def _check(task: _CheckTask) -> _CheckReport:
    problems: list[RestoreProblem] = []
    inputs: list[str] = []
    num_outputs = 0
    num_bytes = 0
    for ref, outcome in task.photos:
        found = list(_check_input(task.source, ref, outcome))
        files = outcome.files() if outcome is not None else ()
        for file in files:
            message = _compare(storage.join(task.output, file.name), file.num_bytes, file.sha256)
            found += [RestoreProblem(file.name, message)] if message else []
        if found:
            inputs.append(ref.name)
        problems += found
        num_outputs += len(files)
        num_bytes += ref.bytes + sum(file.num_bytes for file in files)
    return _CheckReport(tuple(problems), tuple(inputs), num_outputs, num_bytes)


def _check_input(source: PhotoSource, ref: PhotoRef, outcome: Outcome | None) -> Iterator[RestoreProblem]:
    if outcome is None or outcome.row.status == "failed":
        yield RestoreProblem(ref.name, "it is not restored yet; expected a finished restoration")
        return
    row = outcome.row
    try:
        sha256 = hashlib.sha256(source.read(ref)).hexdigest()
    except PhotoUnreadableError as error:
        if row.sha256:
            yield RestoreProblem(ref.name, f"the input cannot be read any more ({one_line(error)})")
        return
    if sha256 != row.sha256:
        expected = row.sha256[:12] or "none, because it could not be read"
        yield RestoreProblem(
            ref.name, f"the input has sha256 {sha256[:12]}; expected {expected}, as it was restored"
        )


def _compare(place: str, num_bytes: int, sha256: str) -> str:
    """How a file differs from its record, in words; "" if it does not."""
    try:
        found = storage.size(place)
        if found != num_bytes:
            return f"the output has {found} bytes; expected {num_bytes}"
        digest = storage.digest(place)
    except FileNotFoundError:
        return "the output is missing"
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise
        return f"the output cannot be read ({error.strerror})"
    if digest != sha256:
        return f"the output has sha256 {digest[:12]}; expected {sha256[:12]}"
    return ""


def _check_own_files(
    output: str, refs: Sequence[PhotoRef], outcomes: Mapping[str, Outcome], request: RestoreRequest
) -> list[RestoreProblem]:
    """Problems of the ledger, its record and the page, if the restoration came to its end."""
    skipped = {ref.name: skipped_outcome(ref) for ref in refs if ref.skipped}
    finished = {**outcomes, **skipped}
    rows = [finished[ref.name].row for ref in refs if ref.name in finished]
    faces = list(chain.from_iterable(finished[row.name].faces for row in rows))
    found = records_problems(output, rows, None if request.aligned else faces)
    problems = [RestoreProblem(name, message) for name, message in found.items()]
    if not is_page_intact(output):
        problems.append(RestoreProblem(PAGE, "it is missing or damaged"))
    return problems
