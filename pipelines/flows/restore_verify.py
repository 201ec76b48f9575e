"""Verify a restored archive: every output, every input and this program's own files are read again.

What differs is named, and noted in the output, so that the next run of the same restoration makes it again.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.shards import ShardDamagedError
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.flows.restore_page import is_page_intact
from pipelines.flows.restore_plan import split_units
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.damage import write_damage
from pipelines.restoration.open_journal import load_journal
from pipelines.restoration.outcomes import PAGE, Outcome
from pipelines.restoration.records import records_problems
from pipelines.restoration.request import REQUEST, RestoreRequest, read_request
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError, open_source

_PHOTOS_PER_TASK: Final = 64
_NUM_NAMED: Final = 10_000


@dataclass(frozen=True)
class RestoreProblem:
    """A file that differs from its record: its name (of an input, or in the output), and how it differs."""

    path: str
    message: str


@dataclass(frozen=True)
class RestoreVerification:
    """What was read, and what differs; of `num_problems` the first 10,000 are named."""

    source: str
    output: str
    inputs: int
    outputs: int
    bytes_read: int
    problems: tuple[RestoreProblem, ...]
    num_problems: int


def verify_restoration(output_uri: str, cluster: Cluster, source_uri: str = "") -> RestoreVerification:
    """Compare a restored archive with its records, and note the inputs that the next run restores again.

    The input is the one that the output was begun with. UsageError if the folder holds no restoration, or if
    `source_uri` names another input. Inputs that are skipped are not read.
    """
    output = storage.absolute(output_uri)
    storage.reopen_folder(output)
    with ArchiveIndex() as index:
        known = load_journal(output, index)
        request, problems = _find_request(output, known.requests)
        source = open_source(source_uri or request.input, every_file=True)
        if without_secrets(source.uri) != request.input:
            raise UsageError(
                f"{output} was restored from {request.input}, not from {without_secrets(source.uri)}; "
                "expected its own input; leave INPUT out"
            )
        index.list_photos(source.refs())
        index.find_files((entry.path, entry.num_bytes) for entry in storage.scan(output))
        index.choose_newest()
        found = _Findings(problems)
        for record, reason in known.damaged.items():
            found.add(RestoreProblem(record, reason))
        _check_all(index, source, output, cluster, found)
        for name in index.lost_inputs():
            found.add(RestoreProblem(name, "the input is gone; expected it as it was restored"))
        for problem in _check_own_files(output, index, request):
            found.add(problem)
        num_inputs = index.num_inputs()
    write_damage(output, found.inputs)
    return RestoreVerification(
        source=source.uri,
        output=output,
        inputs=num_inputs,
        outputs=found.num_outputs,
        bytes_read=found.num_bytes,
        problems=tuple(found.problems),
        num_problems=found.num_problems,
    )


def require_same(report: RestoreVerification) -> None:
    """Raise an error (exit 1) if something differs."""
    if report.problems:
        first = report.problems[0]
        raise DiffBFRError(
            f"{report.num_problems} files differ in {report.output} or its input (first: {first.path}: "
            f"{first.message}); the command that restored it makes them again"
        )


def _find_request(
    output: str, committed: Collection[RestoreRequest]
) -> tuple[RestoreRequest, list[RestoreProblem]]:
    """The pinned request, or the one that the units' records name; UsageError if there is neither."""
    problems: list[RestoreProblem] = []
    try:
        pinned = read_request(output)
    except ShardDamagedError as error:
        problems.append(RestoreProblem(REQUEST, one_line(error)))
        pinned = None
    if pinned is None and committed:
        problems = problems or [RestoreProblem(REQUEST, "it is missing")]
        pinned = next(iter(committed))
    if pinned is None:
        raise UsageError(
            f"{output} holds no restoration; expected the OUTPUT of `diffbfr restore`; name another folder"
        )
    return pinned, problems


class _Findings:
    """What the checks found, and the inputs to restore again."""

    def __init__(self, problems: Iterable[RestoreProblem]) -> None:
        self.problems = list(problems)
        self.num_problems = len(self.problems)
        self.inputs: list[str] = []
        self.num_outputs = 0
        self.num_bytes = 0

    def add(self, problem: RestoreProblem) -> None:
        """Count a problem, and name it if it is one of the first."""
        self.num_problems += 1
        if len(self.problems) < _NUM_NAMED:
            self.problems.append(problem)

    def take(self, report: "_CheckReport") -> None:
        """Add what a task found."""
        for problem in report.problems:
            self.add(problem)
        self.inputs += report.inputs
        self.num_outputs += report.num_outputs
        self.num_bytes += report.num_bytes


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
    index: ArchiveIndex, source: PhotoSource, output: str, cluster: Cluster, found: _Findings
) -> None:
    units = enumerate(split_units(index.photos(), _PHOTOS_PER_TASK))
    cluster.for_each(
        _check,
        (_CheckTask(number, source, output, unit) for number, unit in units),
        found.take,
        label="verify",
        total=index.num_photos(),
        unit="photos",
        weight=lambda task: len(task.photos),
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


def _check_own_files(output: str, index: ArchiveIndex, request: RestoreRequest) -> Iterator[RestoreProblem]:
    """Problems of the ledger, its record and the page, if the restoration came to its end."""
    found = records_problems(output, index.rows(), None if request.aligned else index.faces())
    for name, message in found.items():
        yield RestoreProblem(name, message)
    if not is_page_intact(output):
        yield RestoreProblem(PAGE, "it is missing or damaged")
