"""Many small records become a segment; what was committed is read again, whatever form it has."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.dataset.tables import read_rows, write_rows
from pipelines.restoration import journal, open_journal
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.open_journal import OpenJournal, load_journal
from pipelines.restoration.outcomes import Outcome, OutputFile
from pipelines.restoration.segments import SEGMENTS, SegmentRow
from pipelines.restoration.work import empty_row
from pipelines.sources import PhotoRef
from tests.pipelines.restore_requests import REQUEST

UNITS = 10


def photo(number: int) -> PhotoRef:
    return PhotoRef(f"/in/{number:03d}.png", f"{number:03d}.png", 10 + number, f"v{number}")


def outcome(number: int) -> Outcome:
    ref = photo(number)
    row = empty_row(ref, "restored", "", "with a\nbroken \udcff message")
    row = replace(row, output=f"out/{ref.name}", output_sha256=f"{number:064x}", sha256=f"{number:064x}")
    other = OutputFile(f"more/{ref.name}", 7, "e" * 64)
    return Outcome(row, ref.fingerprint, 5, (other,) if number % 2 else ())


def run(output: Path, numbers: Sequence[int]) -> None:
    """Commit these photos, each a unit, as a run does."""
    with ArchiveIndex() as index:
        known = load_journal(str(output), index)
        index.list_photos(photo(number) for number in range(2 * UNITS))
        opened = OpenJournal(str(output), REQUEST, index, known)
        for number in numbers:
            journal.commit_unit(str(output), [outcome(number)], REQUEST)
            opened.add((outcome(number),))


def current(output: Path) -> list[str]:
    """The photos that need no more work, if every output has its size."""
    with ArchiveIndex() as index:
        load_journal(str(output), index)
        index.list_photos(photo(number) for number in range(2 * UNITS))
        files = [file for number in range(2 * UNITS) for file in outcome(number).files()]
        index.find_files((file.name, file.num_bytes) for file in files if file.name != "more/003.png")
        index.choose_current()
        return [ref.name for ref, known in index.photos() if known is not None]


def names(output: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (output / folder).iterdir())


def test_many_records_become_segments_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_journal, "RECORDS_PER_SEGMENT", 4)
    run(tmp_path, range(UNITS))
    assert (len(names(tmp_path, journal.COMMITS)), len(names(tmp_path, SEGMENTS))) == (2, 2)
    expected = [f"{number:03d}.png" for number in range(UNITS) if number != 3]
    assert current(tmp_path) == expected, "of 003.png a file is missing"
    units = journal.read_units(str(tmp_path))
    assert {known.row.name for known in units.outcomes} == {f"{number:03d}.png" for number in range(UNITS)}
    assert units.outcomes[0].row.message == "with a\nbroken \\udcff message"
    assert (units.requests, dict(units.damaged)) == ({REQUEST}, {})

    run(tmp_path, [3, 11])  # two records of the run before are taken along
    assert (len(names(tmp_path, journal.COMMITS)), len(names(tmp_path, SEGMENTS))) == (0, 3)
    assert current(tmp_path) == [*expected, "011.png"]


def test_records_of_a_run_that_was_killed_between_segment_and_removal_count_once(tmp_path: Path) -> None:
    with ArchiveIndex() as index:
        journal.commit_unit(str(tmp_path), [outcome(0), outcome(2)], REQUEST)
        known = load_journal(str(tmp_path), index)
        journal.replace_records(str(tmp_path), (), index.values_between(0, known.num_small), REQUEST)
    assert current(tmp_path) == ["000.png", "002.png"]


@pytest.mark.parametrize("kind", ["flipped", "cut", "renamed", "folder"])
def test_a_damaged_segment_costs_its_photos_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(open_journal, "RECORDS_PER_SEGMENT", 4)
    run(tmp_path, range(UNITS))
    segment = tmp_path / SEGMENTS / names(tmp_path, SEGMENTS)[0]
    lost = {row.name for row in read_rows(str(segment), SegmentRow)}
    data = segment.read_bytes()
    if kind == "renamed":
        segment.rename(segment.with_name(".parquet"))
    elif kind == "folder":
        segment.unlink()
        segment.mkdir()
    else:
        segment.write_bytes(data[:-9] if kind == "cut" else bytes([data[0] ^ 1]) + data[1:])
    units = journal.read_units(str(tmp_path))
    assert len(units.damaged) == 1
    assert {known.row.name for known in units.outcomes} == {
        f"{number:03d}.png" for number in range(UNITS)
    } - lost


@pytest.mark.parametrize(
    "change",
    [
        {"output": "../victim"},
        {"output": ".diffbfr/request.json"},
        {"output_sha256": "x"},
        {"status": "deleted"},
        {"request": "[]"},
        {"others": json.dumps([{"name": "../../victim", "num_bytes": 1, "sha256": "e" * 64}])},
        {"others": "{"},
    ],
)
def test_a_forged_segment_is_refused_whole(tmp_path: Path, change: dict[str, str]) -> None:
    with ArchiveIndex() as index:
        journal.commit_unit(str(tmp_path), [outcome(0), outcome(2)], REQUEST)
        known = load_journal(str(tmp_path), index)
        journal.replace_records(str(tmp_path), known.records, index.values_between(0, 2), REQUEST)
    segment = tmp_path / SEGMENTS / names(tmp_path, SEGMENTS)[0]
    rows = read_rows(str(segment), SegmentRow)
    segment.unlink()
    forged = tmp_path / "forged"
    sha256 = write_rows(str(forged), SegmentRow, [rows[0], replace(rows[1], **change)])  # type: ignore[arg-type]
    forged.rename(segment.with_name(f"{sha256}.parquet"))

    units = journal.read_units(str(tmp_path))
    assert list(units.damaged) == [f"{sha256}.parquet"]
    assert current(tmp_path) == []
