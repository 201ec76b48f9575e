"""`restore` gives a mirror, a ledger with one row for each input and the right exit code, also resumed."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import read_ledger
from pipelines.flows.restore_archive import (
    RestoreOptions,
    RestoreReport,
    require_clean,
    restore_archive,
)
from pipelines.flows.restore_page import sample_photos, write_restore_page
from pipelines.restoration.outcomes import LEDGER
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.sample_archive import EXPECTED, build, encode, face

ALIGNED = RestoreOptions(aligned=True, unit_size=4)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    build(folder)
    return folder


def pictures(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.png")}


def outcomes(report: RestoreReport) -> dict[str, tuple[object, ...]]:
    return {
        row.name: (row.status, row.reason, row.sha256, row.output, row.output_sha256, row.duplicate_of)
        for row in report.rows
    }


def test_an_archive_of_twenty_gets_twenty_rows_with_the_right_status(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    rows = read_ledger(str(tmp_path / "out" / LEDGER))
    assert {row.name: row.status for row in rows} == EXPECTED
    assert rows == list(report.rows)
    assert (
        report.counts.restored,
        report.counts.duplicate,
        report.counts.quarantined,
        report.counts.failed,
    ) == (17, 1, 2, 0)
    reasons = {row.name: row.reason for row in rows if row.status == "quarantined"}
    assert reasons == {"album/cut short.jpg": "truncated", "album/letter.png": "not_an_image"}
    for row in rows:
        assert row.sha256 == hashlib.sha256((archive / row.name).read_bytes()).hexdigest()
        assert (row.output == "") == (row.status == "quarantined")
        if row.output:
            png = (tmp_path / "out" / row.output).read_bytes()
            assert hashlib.sha256(png).hexdigest() == row.output_sha256
            assert row.model_digest == FakeModel().digest
            with Image.open(io.BytesIO(png)) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
    assert set(pictures(tmp_path / "out")) == {row.output for row in rows if row.output}


def test_formats_and_orientation_restore_the_face_that_a_person_sees(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    def restored(name: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / "out" / name)).astype(float)

    assert np.abs(restored("deep/rotated.png") - restored("deep/upright.png")).mean() < 6
    gray = restored("deep/er/gray16.png")
    assert np.ptp(gray.mean(axis=2)) > 60, "a 16-bit picture is scaled, not clipped"
    assert np.abs(gray.mean() - face(6).mean()) < 6
    assert np.abs(restored("cmyk.png").mean(axis=(0, 1)) - face(5).mean(axis=(0, 1))).max() < 12


def test_a_duplicate_costs_no_second_restoration_and_has_its_own_file(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    log = tmp_path / "keys"
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(log=str(log)), ALIGNED, serial)

    twin = (archive / "album/twin.png").read_bytes()
    keys = [key for line in log.read_text().splitlines() for key in line.split()[1:]]
    assert len(keys) == len(set(keys)) == report.counts.restored
    assert keys.count(f"{hashlib.sha256(twin).hexdigest()}/0/0") == 1
    made = pictures(tmp_path / "out")
    assert made["album/twin.png"] == made["deep/er/twin again.png"]
    assert {row.name: row.duplicate_of for row in report.rows if row.duplicate_of} == {
        "deep/er/twin again.png": "album/twin.png"
    }


def test_several_restorations_fill_a_mirror_each_and_a_lost_one_is_made_again(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    one = restore_archive(str(archive), str(tmp_path / "one"), FakeModel(), ALIGNED, serial)
    three = RestoreOptions(aligned=True, samples=3)
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), three, serial)

    single, made = pictures(tmp_path / "one"), pictures(tmp_path / "out")
    assert sorted(made) == sorted(
        f"{mirror}/{name}" for mirror in ("sample-0", "sample-1", "sample-2", "spread") for name in single
    )
    assert {name: made[f"sample-0/{name}"] for name in single} == single
    assert all(
        made[f"sample-1/{name}"] not in (made[f"sample-0/{name}"], made[f"sample-2/{name}"])
        for name in single
    )
    assert all(
        made[f"{mirror}/album/twin.png"] == made[f"{mirror}/deep/er/twin again.png"]
        for mirror in ("sample-2", "spread")
    )
    assert outcomes(report).keys() == outcomes(one).keys()
    assert all(row.spread > 0 for row in report.rows if row.output)

    again = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), three, serial)
    assert (again.num_worked, again.rows) == (0, report.rows)
    (tmp_path / "out/sample-1/album/twin.png").unlink()
    (tmp_path / "out/spread/cmyk.png").unlink()
    mended = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), three, serial)
    assert (mended.num_worked, pictures(tmp_path / "out")) == (2, made)

    (archive / "cmyk.jpg").write_bytes(b"no picture any more")
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), three, serial)
    assert sorted(made.keys() - pictures(tmp_path / "out").keys()) == [
        "sample-0/cmyk.png",
        "sample-1/cmyk.png",
        "sample-2/cmyk.png",
        "spread/cmyk.png",
    ]


def test_a_finished_rerun_does_no_work_and_needs_no_model(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    first = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}

    class Unloadable(FakeModel):
        def load(self) -> None:  # type: ignore[override]
            raise AssertionError("a finished rerun loads no model")

    second = restore_archive(str(archive), str(tmp_path / "out"), Unloadable(), ALIGNED, serial)

    assert (first.num_worked, second.num_worked) == (20, 0)
    assert second.rows == first.rows
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    } == files


def test_a_zip_gives_what_its_folder_gives(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        for path in sorted(archive.rglob("*"), reverse=True):
            file.write(path, path.relative_to(archive))
    of_folder = restore_archive(str(archive), str(tmp_path / "a"), FakeModel(), ALIGNED, serial)
    of_zip = restore_archive(str(tmp_path / "archive.zip"), str(tmp_path / "b"), FakeModel(), ALIGNED, serial)

    assert outcomes(of_zip) == outcomes(of_folder)
    assert pictures(tmp_path / "b") == pictures(tmp_path / "a")


def test_several_archives_by_a_pattern_get_a_folder_each_in_the_mirror(
    tmp_path: Path, serial: Cluster
) -> None:
    for number, stem in enumerate(("trip_a", "trip_b")):
        with zipfile.ZipFile(tmp_path / f"{stem}.zip", "w") as file:
            file.writestr("me.png", encode(face(number), "PNG"))
            file.writestr(f"../{stem}.png", encode(face(2 + number), "PNG"))
    for num_worked in (4, 0):
        report = restore_archive(
            f"{tmp_path}/trip_*.zip", str(tmp_path / "out"), FakeModel(), ALIGNED, serial
        )
        assert report.num_worked == num_worked
    assert set(pictures(tmp_path / "out")) == {
        "trip_a/me.png",
        "trip_a/trip_a.png",
        "trip_b/me.png",
        "trip_b/trip_b.png",
    }
    assert {photo.status for photo in sample_photos(report)} == {"restored"}


def test_a_picture_depends_on_content_and_seed_alone_not_on_its_batch(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    one_by_one = RestoreOptions(aligned=True, unit_size=1)
    restore_archive(str(archive), str(tmp_path / "a"), FakeModel(), one_by_one, serial)
    restore_archive(
        str(archive), str(tmp_path / "b"), FakeModel(), RestoreOptions(aligned=True, unit_size=20), serial
    )
    restore_archive(
        str(archive), str(tmp_path / "c"), FakeModel(), RestoreOptions(aligned=True, seed=1), serial
    )

    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    assert pictures(tmp_path / "a").keys() == pictures(tmp_path / "c").keys()
    assert all(
        pictures(tmp_path / "a")[name] != picture for name, picture in pictures(tmp_path / "c").items()
    )


@pytest.mark.cluster
def test_ray_actors_give_what_one_process_gives(
    archive: Path, tmp_path: Path, serial: Cluster, cluster: Cluster
) -> None:
    alone = restore_archive(str(archive), str(tmp_path / "a"), FakeModel(), ALIGNED, serial)
    together = restore_archive(str(archive), str(tmp_path / "b"), FakeModel(), ALIGNED, cluster)

    assert outcomes(together) == outcomes(alone)
    assert pictures(tmp_path / "b") == pictures(tmp_path / "a")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_continues_to_the_same_end(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    undisturbed = restore_archive(str(archive), str(tmp_path / "a"), FakeModel(), ALIGNED, serial)
    one_unit = RestoreOptions(aligned=True, unit_size=1)
    script = (
        "from pipelines.cluster import Cluster, ClusterConfig; from tests.pipelines.fake_cascade import "
        "FakeModel;"
        "from pipelines.flows.restore_archive import RestoreOptions, restore_archive;"
        f"restore_archive({str(archive)!r}, {str(tmp_path / 'b')!r}, FakeModel(pause_s=0.2), {one_unit!r}, "
        "Cluster(ClusterConfig(0)))"
    )
    commits = tmp_path / "b" / ".diffbfr" / "commits"
    for num_done in (1, 6, 12):
        run = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
        )
        while not commits.is_dir() or len(list(commits.glob("*.json"))) < num_done:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
        run.wait()
        assert not (tmp_path / "b" / LEDGER).exists()
    continued = restore_archive(str(archive), str(tmp_path / "b"), FakeModel(), ALIGNED, serial)

    assert 0 < continued.num_worked < 20
    assert outcomes(continued) == outcomes(undisturbed)
    assert pictures(tmp_path / "b") == pictures(tmp_path / "a")


def test_a_grown_archive_costs_its_new_photos_only(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    first = outcomes(restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial))
    (archive / "album/a new one.png").write_bytes(encode(face(30), "PNG"))
    shutil.copy(archive / "cmyk.jpg", archive / "album/a new twin.jpg")
    second = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    assert second.num_worked == 2
    assert first.items() <= outcomes(second).items()
    new = {row.name: (row.status, row.duplicate_of) for row in second.rows if "new" in row.name}
    assert new == {"album/a new one.png": ("restored", ""), "album/a new twin.jpg": ("duplicate", "cmyk.jpg")}


def test_a_changed_photo_is_restored_again_and_its_old_picture_goes(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    before = pictures(tmp_path / "out")
    (archive / "cmyk.jpg").write_bytes(b"no longer a picture")
    (archive / "scans/00.png").write_bytes(encode(face(31), "PNG"))
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    after = pictures(tmp_path / "out")
    assert report.num_worked == 2
    assert {row.status for row in report.rows if row.name == "cmyk.jpg"} == {"quarantined"}
    assert before.keys() - after.keys() == {"cmyk.png"}
    assert [name for name in after if after[name] != before[name]] == ["scans/00.png"]


def test_a_lost_or_cut_picture_is_made_again(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    before = pictures(tmp_path / "out")
    (tmp_path / "out/cmyk.png").unlink()
    (tmp_path / "out/album/twin.png").write_bytes(before["album/twin.png"][:100])
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    assert report.num_worked == 2
    assert pictures(tmp_path / "out") == before


@pytest.mark.parametrize("trouble", ["broken", "nan"])
def test_a_failed_face_fails_alone_is_not_passed_through_and_is_tried_again(
    archive: Path, tmp_path: Path, serial: Cluster, trouble: str
) -> None:
    bad = hashlib.sha256((archive / "album/twin.png").read_bytes()).hexdigest()
    broken = FakeModel(broken=(bad,)) if trouble == "broken" else FakeModel(nan=(bad,))
    report = restore_archive(str(archive), str(tmp_path / "out"), broken, ALIGNED, serial)

    failed = {row.name for row in report.rows if row.status == "failed"}
    assert failed == {"album/twin.png", "deep/er/twin again.png"}, "a failed original has failed duplicates"
    assert not failed & pictures(tmp_path / "out").keys()
    assert report.counts.restored == 16
    with pytest.raises(IncompleteError, match="2 of 20 inputs failed"):
        require_clean(report)
    mended = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    assert mended.num_worked == 2
    assert {row.name: row.status for row in mended.rows} == EXPECTED


def test_more_quarantined_than_allowed_is_exit_4(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    with pytest.raises(
        QuarantineError, match=r"2 of 20 inputs are quarantined .*at most 1 allowed"
    ) as raised:
        require_clean(report, max_bad=1)
    assert raised.value.exit_code == 4
    require_clean(report, max_bad=2)


def test_a_member_that_cannot_be_read_is_a_row_and_costs_no_model_on_a_rerun(
    tmp_path: Path, serial: Cluster
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(face(1), "PNG"))
    (folder / "b.png").symlink_to("nowhere")
    first = restore_archive(str(folder), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    first_rows = list(first.rows)
    again = restore_archive(str(folder), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    (folder / "b.png").unlink()
    (folder / "b.png").write_bytes(encode(face(2), "PNG"))
    mended = restore_archive(str(folder), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)

    assert [(row.status, row.reason) for row in first_rows] == [
        ("restored", ""),
        ("quarantined", "unreadable"),
    ]
    assert (first.num_worked, again.num_worked, mended.num_worked) == (2, 0, 1)
    assert mended.counts.restored == 2


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [
        (FakeModel(digest="d2" * 32), ALIGNED, "model"),
        (FakeModel(), RestoreOptions(aligned=True, seed=1), "seed"),
        (FakeModel(), RestoreOptions(aligned=True, mode="faithful"), "mode"),
        (FakeModel(), RestoreOptions(aligned=True, batch_faces=2), "batch_faces"),
        (FakeModel(), RestoreOptions(aligned=True, samples=2), "samples"),
    ],
)
def test_another_request_into_the_same_output_is_refused(
    archive: Path, tmp_path: Path, serial: Cluster, model: FakeModel, options: RestoreOptions, field: str
) -> None:
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    before = pictures(tmp_path / "out")

    with pytest.raises(UsageError, match=f"was begun with {field} .*; name another output folder"):
        restore_archive(str(archive), str(tmp_path / "out"), model, options, serial)
    assert pictures(tmp_path / "out") == before


def test_another_archive_into_the_same_output_is_refused(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    with pytest.raises(UsageError, match="was begun with input"):
        restore_archive(str(archive / "scans"), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)


def test_bad_requests_get_one_clear_line(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.png").touch()
    (tmp_path / "link").symlink_to(archive)
    (tmp_path / "empty").mkdir()
    requests = {
        (
            str(archive),
            str(tmp_path / "out"),
            RestoreOptions(aligned=False),
        ): "either aligned face crops, or whole photos with settings and a detector",
        (
            str(archive),
            str(tmp_path / "out"),
            RestoreOptions(aligned=True, mode="slow"),
        ): "mode 'slow' is unknown",  # type: ignore[arg-type]
        (str(archive), str(tmp_path / "out"), RestoreOptions(aligned=True, unit_size=0)): "unit_size is 0",
        (
            str(archive),
            str(tmp_path / "out"),
            RestoreOptions(aligned=True, samples=0),
        ): "samples 0; expected at least 1",
        (str(archive), str(archive / "restored"), ALIGNED): "lies inside the input",
        (str(archive), str(tmp_path / "link" / "restored"), ALIGNED): "lies inside the input",
        (str(archive), str(tmp_path / "full"), ALIGNED): "holds mine.png and no restoration",
        (str(archive), str(archive / "cmyk.jpg" / "x"), ALIGNED): "lies inside the input|cannot write",
        (str(tmp_path / "empty"), str(tmp_path / "out"), ALIGNED): "holds no",
        (str(tmp_path / "nowhere"), str(tmp_path / "out"), ALIGNED): "is not there",
    }
    for (source, output, options), message in requests.items():
        with pytest.raises(UsageError, match=message) as raised:
            restore_archive(source, output, FakeModel(), options, serial)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_restored_picture_says_what_made_it(archive: Path, tmp_path: Path, serial: Cluster) -> None:
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    row = next(row for row in report.rows if row.name == "cmyk.jpg")
    with Image.open(tmp_path / "out" / row.output) as picture:
        packet = picture.info["XML:com.adobe.xmp"]

    term = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    assert f'Iptc4xmpExt:DigitalSourceType="{term}"' in packet
    assert re.search(f'ModelDigest="{FakeModel().digest}"', packet)
    assert re.search(f'InputSha256="{row.sha256}"', packet)


def test_the_page_shows_photos_before_and_after_and_why_others_were_refused(
    archive: Path, tmp_path: Path, serial: Cluster
) -> None:
    report = restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial)
    photos = sample_photos(report)
    page = Path(write_restore_page(report) or "")

    with_pictures = [photo for photo in photos if photo.before and photo.after]
    assert len(with_pictures) == 8
    for photo in with_pictures:
        before, after = (
            np.asarray(Image.open(io.BytesIO(data or b""))).astype(float)
            for data in (photo.before, photo.after)
        )
        assert before.shape == after.shape == (64, 64, 3)
        assert np.abs(before - after).mean() < 20
    assert {photo.name for photo in photos if photo.status == "quarantined"} == {
        "album/cut short.jpg",
        "album/letter.png",
    }
    assert "which is no picture" in page.read_text()
    assert not any(photo.spread for photo in photos)
    several = restore_archive(
        str(archive), str(tmp_path / "several"), FakeModel(), RestoreOptions(aligned=True, samples=2), serial
    )
    assert all(photo.spread for photo in sample_photos(several) if photo.after)
    assert "where its restorations differ" in Path(write_restore_page(several) or "").read_text()
    written = page.stat().st_mtime_ns
    write_restore_page(restore_archive(str(archive), str(tmp_path / "out"), FakeModel(), ALIGNED, serial))
    assert page.stat().st_mtime_ns == written, "a rerun without work leaves the page"
