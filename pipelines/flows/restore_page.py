"""The report page of a restored archive: counts, images before and after, and the refused inputs."""

import contextlib
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.flows.restore_archive import RestoreReport
from pipelines.flows.restore_output import say
from pipelines.flows.restored_sample import FacesShown, faces_of, sample_faces, sample_rows
from pipelines.report import LineageLink, ReportData, RestoredFace, RestoredPhoto, write_report
from pipelines.report.data import ArchiveFacts
from pipelines.restoration.access import file_mode
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.outcomes import PAGE
from pipelines.restoration.request import CONTROL
from pipelines.restoration.samples import other_outputs
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError, open_source
from pipelines.sources.sandboxed_images import PhotoPictures, photo_pictures

_PAGE_RECORD: Final = f"{CONTROL}/page.json"
_WHOLE_PX: Final = 960
_FACE_PX: Final = 160


def write_restore_page(report: RestoreReport) -> str | None:
    """Write the page into the output folder unless it is up to date; return its address.

    The page is about a run that is finished, so no error changes how that ends: None, and a line that says
    why, if the page cannot be written. A photo that cannot be shown is left out of it.
    """
    place = storage.join(report.output, PAGE)
    try:
        if report.num_worked or not is_page_intact(report.output):
            _write(place, report)
    except Exception as error:  # a page of any kind is worth less than the exit code of the run
        say(f"no report page at {place} ({one_line(error)}); the ledger is complete")
        return None
    return place


def is_page_intact(output: str) -> bool:
    """Whether the page is there as it was written."""
    try:
        recorded = read_checksummed_json(storage.join(output, _PAGE_RECORD))["sha256"]
        return bool(storage.digest(storage.join(output, PAGE)) == recorded)
    except (OSError, ShardDamagedError, KeyError):
        return False


def _write(place: str, report: RestoreReport) -> None:
    settings = f"mode {report.options.mode}, seed {report.options.seed}"
    restored, facts = page_content(report)
    data = ReportData(
        recipe="restore",
        command=" ".join(["diffbfr", *sys.argv[1:]]),
        faces=report.source,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=report.seconds,
        evaluation=None,
        restored=restored,
        counts=tuple(asdict(report.counts).items()),
        archive=facts,
        lineage=((LineageLink("diffbfr-cascade", report.model_digest, settings),),),
        notes=tuple(f"Weights of others in the cascade: {licence}." for licence in report.licences),
    )
    write_report(place, data, within=report.output, mode=file_mode(report.source))
    record = {"sha256": storage.digest(place)}
    write_checksummed_json(storage.join(report.output, _PAGE_RECORD), record, within=report.output)


def sample_photos(report: RestoreReport) -> tuple[RestoredPhoto, ...]:
    """The photos of the page."""
    return page_content(report)[0]


def page_content(report: RestoreReport) -> tuple[tuple[RestoredPhoto, ...], ArchiveFacts]:
    """Photos with doubtful faces, others, and some that were refused; and what is told of all."""
    found = sample_faces(report.faces)
    first = frozenset(face.photo for face in found.doubtful)
    rate = report.num_worked / report.seconds if report.seconds else 0.0
    sample = sample_rows(report.rows, first, found.counts, rate)
    shown = frozenset(row.name for row in sample.shown)
    faces = faces_of(report.faces, shown)
    source, refs = _listed(report.source, shown)
    photos = [
        _aligned_photo(report, row, source, refs.get(row.name))
        if report.options.aligned
        else _whole_photo(report, row, source, refs.get(row.name), faces.get(row.name, FacesShown()))
        for row in sample.shown
    ]
    refused = [RestoredPhoto(row.name, row.status, None, None, row.message) for row in sample.refused]
    return (*photos, *refused), sample.facts


def _listed(uri: str, names: Collection[str]) -> tuple[PhotoSource | None, dict[str, PhotoRef]]:
    """The source and the inputs of these names; nothing if the input cannot be listed any more."""
    if not names:
        return None, {}
    try:
        source = open_source(uri, every_file=True)
        found = (ref for ref in source.refs() if ref.name in names)
        return source, {ref.name: ref for ref in islice(found, len(names))}
    except (DiffBFRError, OSError):
        return None, {}


def _aligned_photo(
    report: RestoreReport, row: LedgerRow, source: PhotoSource | None, ref: PhotoRef | None
) -> RestoredPhoto:
    """A face crop before and after; what cannot be shown any more is left out, and the note says why."""
    from pipelines.sources.sandboxed_images import enlarged_png

    notes = [row.message] if row.message else []
    before: bytes | None = None
    after: list[bytes] = []
    try:
        if source is None or ref is None:
            raise PhotoUnreadableError("it is not there any more")
        before = enlarged_png(source.read(ref), report.hq_px)
        if before is None:
            raise PhotoUnreadableError("it is no picture any more")
    except (OSError, DiffBFRError) as error:
        notes.append(f"the input cannot be shown: {one_line(error)}")
    try:
        outputs = (row.output, *other_outputs(row.output, row.samples))
        after = [storage.read_bytes(storage.join(report.output, output)) for output in outputs]
    except (OSError, DiffBFRError) as error:
        notes.append(f"the output cannot be shown: {one_line(error)}")
    # the last of the other outputs is the spread
    spread = after[-1] if len(after) > 1 else None
    return RestoredPhoto(
        row.name, row.status, before, after[0] if after else None, "; ".join(notes), spread=spread
    )


def _whole_photo(
    report: RestoreReport,
    row: LedgerRow,
    source: PhotoSource | None,
    ref: PhotoRef | None,
    shown: FacesShown,
) -> RestoredPhoto:
    """A photo and its faces before and after; what cannot be shown is left out, and the note says why."""
    notes = [row.message] if row.message else []
    boxes = [(face.left, face.top, face.right, face.bottom) for face in shown.faces]
    pictures: list[PhotoPictures | None] = []
    spread: bytes | None = None
    reads: dict[str, Callable[[], bytes]] = {
        "input": lambda: _input_bytes(source, ref),
        "output": lambda: storage.read_bytes(storage.join(report.output, row.output)),
    }
    for what, read in reads.items():
        try:
            found = photo_pictures(read(), _WHOLE_PX, boxes, row.width, _FACE_PX)
            if found is None:
                raise PhotoUnreadableError("it is no picture any more")
            pictures.append(found)
        except (OSError, DiffBFRError) as error:
            pictures.append(None)
            notes.append(f"the {what} cannot be shown: {one_line(error)}")
    if row.samples > 1:
        with contextlib.suppress(OSError, DiffBFRError):
            last = other_outputs(row.output, row.samples)[-1]
            spread = storage.read_bytes(storage.join(report.output, last))
    before, after = pictures
    cut = [
        _face(face, before.parts[number], after.parts[number] if after else None)
        for number, face in enumerate(shown.faces if before else ())
        if before is not None
    ]
    return RestoredPhoto(
        row.name,
        row.status,
        before.whole if before else None,
        after.whole if after else None,
        "; ".join(notes),
        spread=spread,
        is_whole=True,
        faces=tuple(cut),
        num_more_faces=shown.num_more,
    )


def _input_bytes(source: PhotoSource | None, ref: PhotoRef | None) -> bytes:
    if source is None or ref is None:
        raise PhotoUnreadableError("it is not there any more")
    return source.read(ref)


def _face(face: FaceRow, before: bytes, after: bytes | None) -> RestoredFace:
    is_restored = face.status == "restored"
    title = face.verdict.replace("_", " ") if face.status == "left_alone" else face.status
    detail = f"{face.eyes_px:.0f} px between the eyes"
    if face.consistency is not None:
        detail += f", {face.consistency:.1f} dB of consistency"
    if face.message:
        detail += f", {face.message}"
    doubtful = face.low_confidence or face.status == "failed"
    return RestoredFace(
        "doubtful" if face.low_confidence else title, detail, before, after if is_restored else None, doubtful
    )
