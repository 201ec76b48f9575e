"""The report page of a restored archive: counts, images before and after, and the refused inputs."""

import sys
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.shards import ShardDamagedError
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.flows.restore_archive import RestoreReport
from pipelines.flows.restore_output import say
from pipelines.report import LineageLink, ReportData, RestoredPhoto, write_report
from pipelines.restoration.access import file_mode
from pipelines.restoration.outcomes import PAGE
from pipelines.restoration.request import CONTROL
from pipelines.restoration.samples import other_outputs
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError, open_source

_PAGE_RECORD: Final = f"{CONTROL}/page.json"
_NUM_RESTORED: Final = 8
_NUM_REFUSED: Final = 8


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
    data = ReportData(
        recipe="restore",
        command=" ".join(["diffbfr", *sys.argv[1:]]),
        faces=report.source,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=report.seconds,
        evaluation=None,
        restored=sample_photos(report),
        counts=tuple(asdict(report.counts).items()),
        lineage=((LineageLink("diffbfr-cascade", report.model_digest, settings),),),
        notes=tuple(f"Weights of others in the cascade: {licence}." for licence in report.licences),
    )
    write_report(place, data, within=report.output, mode=file_mode(report.source))
    record = {"sha256": storage.digest(place)}
    write_checksummed_json(storage.join(report.output, _PAGE_RECORD), record, within=report.output)


def sample_photos(report: RestoreReport) -> tuple[RestoredPhoto, ...]:
    """Some restored photos, spread evenly over the archive, then some that were refused or failed."""
    refused = report.sample(("quarantined", "failed"), _NUM_REFUSED)
    restored = report.sample(("restored",), _NUM_RESTORED)
    shown = {row.name for row in restored}
    source, refs = _listed(report.source, shown)
    return (
        *(_restored_photo(report, row, source, refs.get(row.name)) for row in restored),
        *(RestoredPhoto(row.name, row.status, None, None, row.message) for row in refused),
    )


def _listed(uri: str, names: Collection[str]) -> tuple[PhotoSource | None, dict[str, PhotoRef]]:
    """The source and the inputs of these names; nothing if the input cannot be listed any more."""
    try:
        source = open_source(uri, every_file=True)
        return source, {ref.name: ref for ref in source.refs() if ref.name in names}
    except (DiffBFRError, OSError):
        return None, {}


def _restored_photo(
    report: RestoreReport, row: LedgerRow, source: PhotoSource | None, ref: PhotoRef | None
) -> RestoredPhoto:
    """A photo before and after; what cannot be shown any more is left out, and the note says why."""
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
