"""The report page of a restored archive: counts, images before and after, and the refused inputs."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.flows.restore_archive import RestoreReport
from pipelines.report import LineageLink, ReportData, RestoredPhoto, write_report
from pipelines.restoration.samples import other_outputs
from pipelines.sources import PhotoRef, PhotoSource, open_source

PAGE: Final = "report.html"
_NUM_RESTORED: Final = 8
_NUM_REFUSED: Final = 8


def write_restore_page(report: RestoreReport) -> str:
    """Write the page into the output folder unless it is up to date; return its address."""
    place = storage.join(report.output, PAGE)
    if report.num_worked or not storage.exists(place):
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
        )
        write_report(place, data)
    return place


def sample_photos(report: RestoreReport) -> tuple[RestoredPhoto, ...]:
    """Some restored photos, spread evenly over the archive, then some that were refused or failed."""
    refused = [row for row in report.rows if row.status in ("quarantined", "failed")]
    restored = _spread([row for row in report.rows if row.status == "restored"], _NUM_RESTORED)
    source = open_source(report.source, every_file=True)
    shown = {row.name for row in restored}
    refs = {ref.name: ref for ref in source.refs() if ref.name in shown}
    return (
        *(_restored_photo(report, row, source, refs[row.name]) for row in restored),
        *(
            RestoredPhoto(row.name, row.status, None, None, row.message)
            for row in _spread(refused, _NUM_REFUSED)
        ),
    )


def _spread(rows: Sequence[LedgerRow], num: int) -> list[LedgerRow]:
    return [rows[i * len(rows) // num] for i in range(num)] if len(rows) > num else list(rows)


def _restored_photo(
    report: RestoreReport, row: LedgerRow, source: PhotoSource, ref: PhotoRef
) -> RestoredPhoto:
    from pipelines.sources.sandboxed_images import enlarged_png

    before = enlarged_png(source.read(ref), report.hq_px)
    # the last of the other outputs is the spread
    after, *others = (
        storage.read_bytes(storage.join(report.output, output))
        for output in (row.output, *other_outputs(row.output, row.samples))
    )
    return RestoredPhoto(
        row.name, row.status, before, after, row.message, spread=others[-1] if others else None
    )
