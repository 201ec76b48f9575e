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
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Final, TypeVar, get_args

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
from pipelines.flows.restore_plan import find_current, plan_restore, restore_units, split_units
from pipelines.progress import Fact
from pipelines.restoration.access import file_mode
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.damage import clear_damage
from pipelines.restoration.face_rows import FACES, FaceRow
from pipelines.restoration.journal import remove_damaged
from pipelines.restoration.model import RestorationModel
from pipelines.restoration.open_journal import OpenJournal
from pipelines.restoration.outcomes import LEDGER
from pipelines.restoration.output_names import PNG_NAMING, Naming
from pipelines.restoration.records import TableRows, close_records
from pipelines.restoration.request import PhotoSettings, RestoreRequest
from pipelines.restoration.samples import first_prefix
from pipelines.restoration.work import WorkItem
from pipelines.sources import PhotoSource, open_source
from pipelines.sources.weights_ref import WeightsRef
from pipelines.steps.copy_duplicates import Copy, CopyTask, copy_duplicates
from pipelines.steps.restore import BatchReport, RestoreTask, RestoreWorker

Row = TypeVar("Row")
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

    Both are read from their files at each iteration, as of the end of this run; `sample` picks some rows.
    `num_worked` inputs were processed in this run.
    """

    source: str
    output: str
    model_digest: str
    licences: tuple[str, ...]
    hq_px: int
    options: RestoreOptions
    counts: RestoreCounts
    rows: TableRows[LedgerRow]
    faces: TableRows[FaceRow]
    num_worked: int
    seconds: float

    @property
    def ledger(self) -> str:
        """Address of the ledger."""
        return storage.join(self.output, LEDGER)

    def sample(self, statuses: Collection[str], num: int) -> list[LedgerRow]:
        """At most `num` rows with these statuses, spread evenly over the ledger."""
        total = sum(count for status, count in asdict(self.counts).items() if status in statuses)
        wanted = {i * total // num for i in range(num)} if total > num else set(range(total))
        rows = (row for row in self.rows if row.status in statuses)
        return [row for place, row in enumerate(rows) if place in wanted]


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
    request = _request(source, model, options)
    with ArchiveIndex() as index:
        index.list_photos(source.refs())
        journal = open_output(output, request, index)
        index.find_files((entry.path, entry.num_bytes) for entry in storage.scan(output))
        find_current(source, index, noted_damage(output))
        if index.num_left():
            require_places(cluster, output, [(source, index.refs_left())])
        plan_restore(source, index, output, cluster, first_prefix(options.samples), _naming(options))
        num_left = index.num_left()  # a finished original may have changed
        _restore(index, journal, source, output, model, request, options, cluster)
        # a duplicate is copied from its original's file, so all originals are restored before
        _copy(index, journal, output, request, cluster)
        index.require_complete()
        counts = _count(index)
        remove_outdated(output, index)
        _close(index, source, output, model, options, counts, num_left)
        report = RestoreReport(
            source=source.uri,
            output=output,
            model_digest=model.digest,
            licences=model.licences,
            hq_px=model.hq_px,
            options=options,
            counts=counts,
            rows=_table(output, LEDGER, LedgerRow, index.num_inputs()),
            faces=_table("" if options.aligned else output, FACES, FaceRow, index.num_faces()),
            num_worked=num_left,
            seconds=time.perf_counter() - started,
        )
    remove_damaged(output, journal.damaged)
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
    bad = {"quarantined", "skipped"} if strict else {"quarantined"}
    num_bad = report.counts.quarantined + (report.counts.skipped if strict else 0)
    if num_bad > max_bad:
        found = "quarantined or skipped" if strict else "quarantined"
        first = next(row for row in report.rows if row.status in bad)
        raise QuarantineError(
            f"{num_bad} of {len(report.rows)} inputs are {found} (first: {first.name}: {first.message}); "
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


def _restore(
    index: ArchiveIndex,
    journal: OpenJournal,
    source: PhotoSource,
    output: str,
    model: RestorationModel,
    request: RestoreRequest,
    options: RestoreOptions,
    cluster: Cluster,
) -> None:
    """Restore photos on device actors, unit by unit; tasks are made as actors get free."""
    total = index.num_to_restore()
    if not total:
        return
    tasks = (
        RestoreTask(
            index=number,
            source=source,
            items=unit,
            output_uri=output,
            request=request,
            detector=options.detector,
            identity=options.identity,
        )
        for number, unit in enumerate(restore_units(index, options.unit_size))
    )
    faces, photos, started = 0, 0, time.perf_counter()

    def take(report: BatchReport) -> Mapping[str, Fact]:
        nonlocal faces, photos
        journal.add(report.outcomes)
        faces += report.counts().faces
        photos += len(report.outcomes)
        # how many faces the other photos have is not known before they are searched
        expected = faces if photos == total else f"{faces} of about {round(faces / photos * total)}"
        rate = faces / (time.perf_counter() - started)
        return {"faces": expected, "faces/s": float(f"{rate:.3g}")}

    cluster.for_each_on_actors(
        partial(RestoreWorker, model),
        tasks,
        take,
        label="restore",
        total=total,
        num_tasks=-(-total // options.unit_size),
        unit="photos",
        weight=lambda task: len(task.items),
        one_core=True,
    )


def _copy(
    index: ArchiveIndex, journal: OpenJournal, output: str, request: RestoreRequest, cluster: Cluster
) -> None:
    """Give duplicates their own files, unit by unit."""
    total = index.num_left()
    if not total:
        return
    copies = (Copy(WorkItem(ref, name), original) for ref, name, original in index.duplicates())
    units = enumerate(split_units(copies, _COPIES_PER_UNIT))
    cluster.for_each(
        copy_duplicates,
        (CopyTask(number, unit, output, request) for number, unit in units),
        lambda report: journal.add(report.outcomes),
        label="copy",
        total=total,
        unit="photos",
        weight=lambda task: len(task.copies),
    )


def _count(index: ArchiveIndex) -> RestoreCounts:
    by_status = index.counts()
    counts = RestoreCounts(**{field.name: by_status.get(field.name, 0) for field in fields(RestoreCounts)})
    if sum(asdict(counts).values()) != index.num_inputs():
        raise DiffBFRError(
            f"{index.num_inputs()} inputs, but {counts}; expected the counts to add up; this is a bug of "
            "diffbfr: report it"
        )
    return counts


def _table(output: str, name: str, row_type: type[Row], num_rows: int) -> TableRows[Row]:
    place = storage.join(output, name) if output else ""
    return TableRows(place, row_type, num_rows, storage.digest(place) if place else "")


def _plain(options: RestoreOptions) -> dict[str, Any]:
    """The options without where weights lie, which is this machine's."""
    return {name: value for name, value in asdict(options).items() if name not in ("detector", "identity")}


def _close(
    index: ArchiveIndex,
    source: PhotoSource,
    output: str,
    model: RestorationModel,
    options: RestoreOptions,
    counts: RestoreCounts,
    num_worked: int,
) -> None:
    """Write the ledger, then the record; nothing if an earlier run already wrote the same."""
    summary = {
        "input": without_secrets(source.uri),
        "model": model.digest,
        "hq_px": model.hq_px,
        "options": _plain(options),
        "inputs": index.num_inputs(),
        "counts": asdict(counts),
        "seconds": index.seconds(),
    }
    if model.licences:
        summary["licences"] = list(model.licences)
    faces = None if options.aligned else index.faces
    replaced = close_records(output, index.rows, faces, summary, file_mode(source.uri))
    if replaced and not num_worked:
        say(f"{' and '.join(replaced)} in {output} did not fit the records; written again")
