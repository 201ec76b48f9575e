"""What happens to an output: it is verified, its damaged files are made again, and the page never decides.

Every damage here was once a dead end, or was never noticed.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from diffbfr.errors import DiffBFRError, UsageError
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import read_ledger
from pipelines.flows.restore_archive import RestoreOptions, RestoreReport, restore_archive
from pipelines.flows.restore_page import write_restore_page
from pipelines.flows.restore_verify import require_same, verify_restoration
from pipelines.restoration.outcomes import LEDGER, PAGE, RECORD
from pipelines.restoration.request import REQUEST
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import encode, face

ALIGNED = RestoreOptions(aligned=True, unit_size=2)
TWO_SAMPLES = RestoreOptions(aligned=True, unit_size=2, samples=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos, two of them equal, and a text."""
    folder = tmp_path / "in"
    (folder / "album").mkdir(parents=True)
    for number in range(4):
        (folder / f"album/{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    shutil.copy(folder / "album/1.png", folder / "twin.png")
    (folder / "letter.png").write_bytes(b"Dear Madam")
    return folder


def finished(photos: Path, serial: Cluster, options: RestoreOptions = ALIGNED) -> Path:
    """An output of these photos with its page."""
    output = photos.parent / "out"
    again(photos, serial, options)
    return output


def again(photos: Path, serial: Cluster, options: RestoreOptions = ALIGNED) -> RestoreReport:
    report = restore_archive(str(photos), str(photos.parent / "out"), FakeModel(), options, serial)
    write_restore_page(report)
    return report


def flip(path: Path, place: float = 0.5) -> None:
    """Flip one bit; size and time of the file stay."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def contents(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.png")}


def named(output: Path, serial: Cluster) -> set[str]:
    return {problem.path for problem in verify_restoration(str(output), serial).problems}


def test_an_untouched_restoration_has_no_difference_and_is_not_touched(photos: Path, serial: Cluster) -> None:
    output = finished(photos, serial)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    report = verify_restoration(str(output), serial)

    require_same(report)
    assert (report.inputs, report.outputs, report.problems) == (6, 5, ())
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "file", "name"),
    [
        (ALIGNED, "album/2.png", "album/2.png"),
        (ALIGNED, "twin.png", "twin.png"),
        (TWO_SAMPLES, "sample-0/album/2.png", "sample-0/album/2.png"),
        (TWO_SAMPLES, "sample-1/album/2.png", "sample-1/album/2.png"),
        (TWO_SAMPLES, "spread/twin.png", "spread/twin.png"),
    ],
)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_of_an_output_is_named_and_the_next_run_mends_it(
    photos: Path, serial: Cluster, options: RestoreOptions, file: str, name: str, place: float
) -> None:
    output = finished(photos, serial, options)
    before = contents(output)
    flip(output / file, place)
    assert again(photos, serial, options).num_worked == 0, "its size and time say nothing"

    assert named(output, serial) == {name}
    with pytest.raises(DiffBFRError, match=rf"1 files differ .*first: {name}: .*makes them again") as raised:
        require_same(verify_restoration(str(output), serial))
    assert raised.value.exit_code == 1
    assert again(photos, serial, options).num_worked == 1
    assert contents(output) == before
    assert named(output, serial) == set()
    assert again(photos, serial, options).num_worked == 0


def test_an_input_that_changed_is_named_and_restored_as_it_is_now(photos: Path, serial: Cluster) -> None:
    output = finished(photos, serial)
    other = encode(face(9, 24), "PNG")
    times = (photos / "album/0.png").stat()
    size = max(len(other), times.st_size)
    (photos / "album/0.png").write_bytes(other.ljust(size, b"\0"))
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    restore_archive(str(photos), str(output), FakeModel(), ALIGNED, serial)
    flip(photos / "album/3.png", 0.9)

    assert named(output, serial) >= {"album/3.png"}
    report = again(photos, serial)
    row = next(row for row in report.rows if row.name == "album/3.png")
    assert row.status in ("restored", "quarantined")
    assert named(output, serial) == set()


def test_lost_inputs_and_outputs_are_named(photos: Path, serial: Cluster) -> None:
    output = finished(photos, serial)
    (photos / "album/3.png").unlink()
    (output / "album/2.png").unlink()
    (output / "album/0.png").write_bytes(b"short")

    messages = {p.path: p.message for p in verify_restoration(str(output), serial).problems}
    assert messages["album/3.png"] == "the input is gone; expected it as it was restored"
    assert messages["album/2.png"] == "the output is missing"
    assert messages["album/0.png"].startswith("the output has 5 bytes; expected ")


def test_verify_wants_a_restoration_and_its_own_input(photos: Path, serial: Cluster, tmp_path: Path) -> None:
    output = finished(photos, serial)
    with pytest.raises(UsageError, match="holds no restoration"):
        verify_restoration(str(photos), serial)
    with pytest.raises(UsageError, match="holds no restoration"):
        verify_restoration(str(tmp_path / "nowhere"), serial)
    with pytest.raises(UsageError, match=r"was restored from .*, not from"):
        verify_restoration(str(output), serial, str(photos / "album"))
    assert not verify_restoration(str(output), serial, str(photos)).problems


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def other_json(path: Path) -> None:
    path.write_text('{"a": [1, 2]}')


def lose(path: Path) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, empty, garble, other_json, flip, lose)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [REQUEST, LEDGER, RECORD, PAGE])
def test_a_damaged_file_of_our_own_is_made_again_from_the_records(
    photos: Path,
    serial: Cluster,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    output = finished(photos, serial)
    rows, pictures = read_ledger(str(output / LEDGER)), contents(output)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.name in (LEDGER, RECORD)}
    damage(output / name)
    capsys.readouterr()
    assert named(output, serial), "verify notices it"
    report = again(photos, serial)

    assert (report.num_worked, list(report.rows), contents(output)) == (0, rows, pictures)
    assert read_ledger(str(output / LEDGER)) == rows
    assert (output / RECORD).read_bytes() == before[RECORD]
    assert named(output, serial) == set()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffbfr: ")]
    assert len(said) == (name in (REQUEST, LEDGER, RECORD) and not (damage is lose and name != REQUEST))
    assert again(photos, serial).num_worked == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_costs_its_unit_and_is_no_dead_end(
    photos: Path, serial: Cluster, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    output = finished(photos, serial)
    before = contents(output)
    record = min((output / ".diffbfr/commits").iterdir())
    num_photos = len(json.loads(record.read_text())["outcomes"])
    damage(record)
    capsys.readouterr()
    report = again(photos, serial)

    assert report.num_worked == num_photos
    assert contents(output) == before
    line = "records of .* cannot be used"
    assert bool([s for s in capsys.readouterr().err.splitlines() if line[:10] in s]) == (damage is not lose)
    assert named(output, serial) == set()
    assert again(photos, serial).num_worked == 0


def test_everything_of_our_own_at_once_is_made_again(photos: Path, serial: Cluster) -> None:
    output = finished(photos, serial)
    before = contents(output)
    for path in [*(output / ".diffbfr").rglob("*.json"), *(output / name for name in (LEDGER, RECORD, PAGE))]:
        garble(path)

    assert again(photos, serial).num_worked == 6
    assert contents(output) == before
    assert named(output, serial) == set()


def test_a_changed_original_is_restored_again_before_a_new_duplicate_is_copied(
    photos: Path, serial: Cluster
) -> None:
    output = finished(photos, serial)
    before = contents(output)
    flip(output / "album/2.png")
    shutil.copy(photos / "album/2.png", photos / "new twin.png")
    report = again(photos, serial)

    rows = list(report.rows)
    assert {row.status for row in rows if row.sha256 == rows[2].sha256} <= {
        "restored",
        "duplicate",
    }
    assert report.counts.failed == 0
    assert contents(output) == before | {"new twin.png": before["album/2.png"]}


def test_the_page_is_written_though_the_input_went_away(photos: Path, serial: Cluster) -> None:
    report = restore_archive(str(photos), str(photos.parent / "out"), FakeModel(), ALIGNED, serial)
    photos.rename(photos.parent / "moved")

    page = Path(write_restore_page(report) or "").read_text()
    assert page.count("the input cannot be shown") == 4
    assert page.count("data:image") >= 4


def test_the_page_is_written_though_the_zip_is_deleted_or_a_photo_changed(
    photos: Path, serial: Cluster, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
    report = restore_archive(str(tmp_path / "in.zip"), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    (tmp_path / "in.zip").write_bytes(b"PK")
    assert write_restore_page(report)
    (tmp_path / "in.zip").unlink()
    assert write_restore_page(report)


def test_the_page_is_written_though_outputs_and_profiles_are_damaged(photos: Path, serial: Cluster) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(photos / "album/0.png") as photo:
        photo.save(photos / "album/0.png", icc_profile=profile[: len(profile) // 2])
    report = restore_archive(str(photos), str(photos.parent / "out"), FakeModel(), ALIGNED, serial)
    (photos.parent / "out/album/1.png").unlink()
    (photos.parent / "out/album/2.png").write_bytes(b"not a picture")

    assert write_restore_page(report)


def test_a_page_that_cannot_be_written_changes_no_exit_code(
    photos: Path, serial: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    report = restore_archive(str(photos), str(photos.parent / "out"), FakeModel(), ALIGNED, serial)
    (photos.parent / "out" / PAGE).mkdir()

    assert write_restore_page(report) is None
    assert "no report page at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "photo", "expected"),
    [
        (0o755, 0o644, 0o644),
        (0o755, 0o600, 0o600),
        (0o755, 0o640, 0o640),
        (0o700, 0o644, 0o600),
        (0o750, 0o644, 0o640),
    ],
)
def test_an_output_is_open_to_nobody_who_may_not_read_the_photo(
    photos: Path, serial: Cluster, folder: int, photo: int, expected: int
) -> None:
    before = os.umask(0o022)
    try:
        (photos / "album").chmod(folder)
        for path in (photos / "album").iterdir():
            path.chmod(photo)
        output = finished(photos, serial)
    finally:
        os.umask(before)
    assert {oct((output / f"album/{n}.png").stat().st_mode & 0o777) for n in range(4)} == {oct(expected)}
    assert (output / "twin.png").stat().st_mode & 0o777 == 0o644


def test_the_ledger_and_the_page_of_a_private_archive_are_private(photos: Path, serial: Cluster) -> None:
    photos.chmod(0o700)
    output = finished(photos, serial)

    assert output.stat().st_mode & 0o077 == 0
    records = [path.relative_to(output) for path in (output / ".diffbfr/commits").iterdir()]
    for name in (LEDGER, RECORD, PAGE, REQUEST, "twin.png", *records):
        assert (output / name).stat().st_mode & 0o077 == 0, name
