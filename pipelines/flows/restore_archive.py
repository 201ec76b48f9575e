"""Restore an archive: one ledger row for every input, one image in the mirror for every restored face.

```
pin        write the request (input, cascade digest, mode, seed) into the output; refuse a different one there
resume     read the outcomes that earlier runs committed and keep those that are current and not named damaged
match      compare inputs of equal size by sha256, so that equal bytes are restored once
restore    run units of photos on device actors; each unit's record is written after its images
copy       give each duplicate its own file
close      write ledger.parquet and faces.parquet, then restore.json
```
The same command resumes an interrupted run, and does nothing when nothing is left. Files of its own that are
damaged are made again from the records of the units; a unit whose record is damaged is restored again.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, get_args

from diffbfr.errors import DiffBFRError, IncompleteError, QuarantineError, UsageError
from diffbfr.stages import Mode
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import LedgerRow
from pipelines.flows.places import require_places
from pipelines.flows.restore_output import (
    check_output_outside_input,
    noted_damage,
    open_output,
    remove_outdated,
    say,
)
from pipelines.flows.restore_plan import find_changed_originals, find_current, plan_restore, split_units
from pipelines.restoration.access import file_mode
from pipelines.restoration.damage import clear_damage
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.model import RestorationModel
from pipelines.restoration.outcomes import (
    LEDGER,
    Outcome,
    remove_damaged,
)
from pipelines.restoration.output_names import PNG_NAMING, Naming
from pipelines.restoration.records import close_records
from pipelines.restoration.request import PhotoSettings, RestoreRequest
from pipelines.restoration.samples import first_prefix
from pipelines.restoration.work import WorkItem
from pipelines.sources import PhotoRef, PhotoSource, open_source
from pipelines.sources.weights_ref import WeightsRef
from pipelines.steps.copy_duplicates import Copy, CopyTask, copy_duplicates
from pipelines.steps.restore import BatchReport, RestoreTask, RestoreWorker, skipped_outcome

_COPIES_PER_UNIT: Final = 64


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore an archive.

    `aligned` states that the inputs are square face crops in the FFHQ frame; whole photos have `photos` and a
    `detector` of the sha256 that these name, and may have the weights of a face network (`identity`).
    `unit_size` is the number of photos in a commit, `samples` the number of restorations of each face
    (`pipelines.restoration.samples`). `batch_faces` is the batch size of the cascade. It is part of the
    pinned request, because kernels round differently at another size.
    """

    aligned: bool
    mode: Mode = "fast"
    seed: int = 0
    unit_size: int = 16
    batch_faces: int = 4
    samples: int = 1
    photos: PhotoSettings | None = None
    detector: WeightsRef | None = None
    identity: WeightsRef | None = None


@dataclass(frozen=True)
class RestoreCounts:
    """Number of inputs by status; the sum is the number of all inputs."""

    restored: int
    no_face: int
    duplicate: int
    quarantined: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class RestoreReport:
    """Result of a restoration: `rows` is the ledger, `faces` the table of faces.

    `num_worked` inputs were processed in this run.
    """

    source: str
    output: str
    model_digest: str
    licences: tuple[str, ...]
    hq_px: int
    options: RestoreOptions
    counts: RestoreCounts
    rows: tuple[LedgerRow, ...]
    faces: tuple[FaceRow, ...]
    num_worked: int
    seconds: float

    @property
    def ledger(self) -> str:
        """Address of the ledger."""
        return storage.join(self.output, LEDGER)


def restore_archive(
    source_uri: str, output_uri: str, model: RestorationModel, options: RestoreOptions, cluster: Cluster
) -> RestoreReport:
    """Restore every photo or face crop of an archive into a mirror of it; the counts include earlier runs.

    PlaceError for an error of the system that concerns no photo, such as a full disk.
    """
    _check_options(options)
    source, output = open_source(source_uri, every_file=True), storage.absolute(output_uri)
    check_output_outside_input(source.uri, output)
    try:
        return _restore_archive(source, output, model, options, cluster)
    except OSError as error:
        raise storage.place_error(error.filename or output, error, "used") from error


def _restore_archive(
    source: PhotoSource, output: str, model: RestorationModel, options: RestoreOptions, cluster: Cluster
) -> RestoreReport:
    started = time.perf_counter()
    listed = list(source.refs())
    refs = [ref for ref in listed if not ref.skipped]
    request = _request(source, model, options)
    units = open_output(output, request)

    known = list(units.outcomes)
    sizes = {entry.path: entry.num_bytes for entry in storage.walk(output)}
    current = _without(find_current(source, refs, known, sizes), noted_damage(output))
    waiting = [ref for ref in refs if ref.name not in current]
    if waiting:
        require_places(cluster, output, [(source, waiting)])
    plan = plan_restore(source, refs, current, cluster, first_prefix(options.samples), _naming(options))
    changed = find_changed_originals(plan, current, output)
    if changed:
        current = _without(current, changed)
        plan = plan_restore(source, refs, current, cluster, first_prefix(options.samples), _naming(options))
    outcomes = dict(current)
    outcomes.update(_restore(plan.items, source, output, model, request, options, cluster))
    # a duplicate is copied from its original's file, so all originals are restored before
    copies = [Copy(item, outcomes[original].row) for item, original in plan.duplicates]
    outcomes.update(_copy(copies, output, request, cluster))

    skipped = {ref.name: skipped_outcome(ref) for ref in listed if ref.skipped}
    rows = _rows(listed, {**outcomes, **skipped})
    report = RestoreReport(
        source=source.uri,
        output=output,
        model_digest=model.digest,
        licences=model.licences,
        hq_px=model.hq_px,
        options=options,
        counts=_count(rows),
        rows=rows,
        faces=tuple(chain.from_iterable(outcomes[ref.name].faces for ref in refs)),
        num_worked=len(plan.items) + len(copies),
        seconds=time.perf_counter() - started,
    )
    remove_outdated(output, known, outcomes)
    _close(report)
    remove_damaged(output, units.damaged)
    clear_damage(output)
    return report


def require_clean(report: RestoreReport, max_bad: int = 0, strict: bool = False) -> None:
    """Raise an error if a restoration is not clean.

    `IncompleteError` (exit 3) means that a face failed, `QuarantineError` (exit 4) that more than `max_bad`
    inputs were refused. With `strict`, skipped inputs count as refused.
    """
    if report.counts.failed:
        first = next(row for row in report.rows if row.status == "failed")
        raise IncompleteError(
            f"{report.counts.failed} of {len(report.rows)} inputs failed (first: {first.name}: "
            f"{first.message}); expected every face restored; see {report.ledger} for what to mend, then run "
            "the same command again"
        )
    bad = [row for row in report.rows if row.status == "quarantined" or (strict and row.status == "skipped")]
    if len(bad) > max_bad:
        found = "quarantined or skipped" if strict else "quarantined"
        raise QuarantineError(
            f"{len(bad)} of {len(report.rows)} inputs are {found} (first: {bad[0].name}: {bad[0].message}); "
            f"at most {max_bad} allowed; see {report.ledger}, mend or remove them, or raise --max-bad"
        )


def _check_options(options: RestoreOptions) -> None:
    if options.aligned == (options.photos is not None) or (options.photos is None) != (
        options.detector is None
    ):
        raise UsageError(
            "the inputs are either aligned face crops, or whole photos with settings and a detector; "
            "expected one of the two"
        )
    if options.mode not in get_args(Mode):
        raise UsageError(f"mode {options.mode!r} is unknown; expected one of {', '.join(get_args(Mode))}")
    if min(options.unit_size, options.batch_faces, options.samples) < 1:
        raise UsageError(
            f"unit_size is {options.unit_size}, batch_faces {options.batch_faces}, samples "
            f"{options.samples}; expected at least 1 of each"
        )


def _request(source: PhotoSource, model: RestorationModel, options: RestoreOptions) -> RestoreRequest:
    return RestoreRequest(
        input=without_secrets(source.uri),
        model=model.digest,
        mode=options.mode,
        seed=options.seed,
        batch_faces=options.batch_faces,
        aligned=options.aligned,
        hq_px=model.hq_px,
        samples=options.samples,
        photos=options.photos,
        licences=model.licences,
    )


def _naming(options: RestoreOptions) -> Naming:
    return PNG_NAMING if options.photos is None else Naming(options.photos.file_format or None)


def _without(outcomes: Mapping[str, Outcome], names: Collection[str]) -> dict[str, Outcome]:
    return {name: outcome for name, outcome in outcomes.items() if name not in names}


def _restore(
    items: Sequence[WorkItem],
    source: PhotoSource,
    output: str,
    model: RestorationModel,
    request: RestoreRequest,
    options: RestoreOptions,
    cluster: Cluster,
) -> Iterator[tuple[str, Outcome]]:
    """Restore photos on device actors, unit by unit; yields each outcome with its input's name."""
    tasks = [
        RestoreTask(
            index=index,
            source=source,
            items=tuple(unit),
            output_uri=output,
            request=request,
            detector=options.detector,
            identity=options.identity,
        )
        for index, unit in enumerate(split_units(items, options.unit_size))
    ]
    if tasks:
        reports = cluster.map_actors(
            partial(RestoreWorker, model),
            tasks,
            label="restore",
            unit="photos",
            weight=lambda task: len(task.items),
        )
        yield from _by_name(reports)


def _copy(
    copies: Sequence[Copy], output: str, request: RestoreRequest, cluster: Cluster
) -> Iterator[tuple[str, Outcome]]:
    """Give duplicates their own files, unit by unit; yields each outcome with its input's name."""
    units = split_units(copies, _COPIES_PER_UNIT)
    tasks = [CopyTask(index, tuple(unit), output, request) for index, unit in enumerate(units)]
    if tasks:
        reports = cluster.map(
            copy_duplicates, tasks, label="copy", unit="photos", weight=lambda task: len(task.copies)
        )
        yield from _by_name(reports)


def _by_name(reports: Iterable[BatchReport]) -> Iterator[tuple[str, Outcome]]:
    for report in reports:
        for outcome in report.outcomes:
            yield outcome.row.name, outcome


def _rows(refs: Sequence[PhotoRef], outcomes: Mapping[str, Outcome]) -> tuple[LedgerRow, ...]:
    # a ledger without an input would hide that the input was lost
    missing = [ref.name for ref in refs if ref.name not in outcomes]
    if missing or len(outcomes) != len(refs):
        raise DiffBFRError(
            f"{len(refs)} inputs have {len(outcomes)} outcomes (without: {missing[:1]}); expected one each; "
            "this is a bug of diffbfr: report it"
        )
    return tuple(outcomes[ref.name].row for ref in refs)


def _count(rows: Sequence[LedgerRow]) -> RestoreCounts:
    by_status = Counter(row.status for row in rows)
    counts = RestoreCounts(
        restored=by_status["restored"],
        no_face=by_status["no_face"],
        duplicate=by_status["duplicate"],
        quarantined=by_status["quarantined"],
        failed=by_status["failed"],
        skipped=by_status["skipped"],
    )
    if sum(asdict(counts).values()) != len(rows):
        raise DiffBFRError(
            f"{len(rows)} inputs, but {counts}; expected the counts to add up; this is a bug of diffbfr: "
            "report it"
        )
    return counts


def _plain(options: RestoreOptions) -> dict[str, Any]:
    """The options without where weights lie, which is this machine's."""
    return {name: value for name, value in asdict(options).items() if name not in ("detector", "identity")}


def _close(report: RestoreReport) -> None:
    """Write the ledger, then the record; nothing if an earlier run already wrote the same."""
    summary = {
        "input": without_secrets(report.source),
        "model": report.model_digest,
        "hq_px": report.hq_px,
        "options": _plain(report.options),
        "inputs": len(report.rows),
        "counts": asdict(report.counts),
        "seconds": sum(row.seconds for row in report.rows),
    }
    if report.licences:
        summary["licences"] = list(report.licences)
    faces = None if report.options.aligned else report.faces
    replaced = close_records(report.output, report.rows, faces, summary, file_mode(report.source))
    if replaced and not report.num_worked:
        say(f"{' and '.join(replaced)} in {report.output} did not fit the records; written again")
