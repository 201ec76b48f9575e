"""A unit of photos is batched across photos and repeatable to the byte; a bad face fails alone."""

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffbfr.errors import UsageError
from diffbfr.images import decode
from pipelines import storage
from pipelines.restoration.journal import read_units
from pipelines.restoration.outcomes import Outcome, OutputFile
from pipelines.restoration.work import WorkItem
from pipelines.sources import open_source
from pipelines.steps.copy_duplicates import Copy, CopyTask, copy_duplicates
from pipelines.steps.restore import RestoreTask, RestoreWorker
from tests.pipelines.fake_cascade import FakeCascade, FakeModel
from tests.pipelines.restore_requests import REQUEST, make_request
from tests.pipelines.sample_archive import encode, face


def make_task(tmp_path: Path, num_photos: int = 5) -> RestoreTask:
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    for number in range(num_photos):
        (folder / f"{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    source = open_source(folder, every_file=True)
    items = tuple(WorkItem(ref, f"{Path(ref.name).stem}.png") for ref in source.refs())
    return RestoreTask(0, source, items, str(tmp_path / "out"), REQUEST)


def digest(tmp_path: Path, number: int) -> str:
    return hashlib.sha256((tmp_path / f"photos/{number}.png").read_bytes()).hexdigest()


def test_batches_go_across_photos_and_all_have_the_same_size(tmp_path: Path) -> None:
    RestoreWorker(FakeModel(log=str(tmp_path / "log")))(make_task(tmp_path))
    sizes, keys = zip(
        *(line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()), strict=True
    )

    assert sizes == ("4", "4")
    assert " ".join(keys).split() == [f"{digest(tmp_path, number)}/0/0" for number in range(5)]


def test_nothing_is_filled_up_where_a_face_is_alone_what_it_is_in_a_batch(tmp_path: Path) -> None:
    worker = RestoreWorker(FakeModel(log=str(tmp_path / "log"), is_batch_invariant=True))
    worker(make_task(tmp_path))
    assert [line.split(" ", 1)[0] for line in (tmp_path / "log").read_text().splitlines()] == ["4", "1"]


def test_several_samples_have_noise_of_their_own_and_the_first_is_the_only_one_of_a_single_run(
    tmp_path: Path,
) -> None:
    task, worker = make_task(tmp_path), RestoreWorker(FakeModel(log=str(tmp_path / "log")))
    single = {outcome.row.name: outcome.row.output_sha256 for outcome in worker(task).outcomes}
    (tmp_path / "log").unlink()
    items = tuple(replace(item, output=f"sample-0/{item.output}") for item in task.items)
    report = worker(
        replace(task, items=items, request=make_request(samples=3), output_uri=str(tmp_path / "several"))
    )

    keys = " ".join(line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()).split()
    numbered = [(photo, number) for photo in range(5) for number in range(3)]
    assert keys == [f"{digest(tmp_path, photo)}/0/{number}" for photo, number in numbered]
    for outcome in report.outcomes:
        row, name = outcome.row, Path(outcome.row.output).name
        samples = [
            decode((tmp_path / f"several/sample-{number}/{name}").read_bytes()).pixels for number in range(3)
        ]
        found = np.stack(samples).astype(float).var(axis=0, ddof=1).mean(axis=2) ** 0.5
        heatmap = decode((tmp_path / f"several/spread/{name}").read_bytes()).pixels
        assert (row.output_sha256, row.samples, row.spread) == (
            single[row.name],
            3,
            pytest.approx(found.mean()),
        )
        assert np.array_equal(heatmap[:, :, 0], np.clip(np.rint(4 * found), 0, 255))
        assert outcome.others == tuple(
            OutputFile(other.name, len(data), hashlib.sha256(data).hexdigest())
            for other in outcome.others
            if (data := (tmp_path / "several" / other.name).read_bytes())
        )
        assert [other.name for other in outcome.others] == [
            f"sample-1/{name}",
            f"sample-2/{name}",
            f"spread/{name}",
        ]
    assert sorted(read_units(str(tmp_path / "several")).outcomes, key=by_name) == list(report.outcomes)


def test_a_sample_that_fails_fails_its_face_alone_and_leaves_no_picture(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    items = tuple(replace(item, output=f"sample-0/{item.output}") for item in task.items)
    model = FakeModel(broken=(f"{digest(tmp_path, 2)}/0/1",))
    report = RestoreWorker(model)(replace(task, items=items, request=make_request(samples=2)))
    assert [outcome.row.status for outcome in report.outcomes] == [
        "restored",
        "restored",
        "failed",
        "restored",
        "restored",
    ]
    assert not list((tmp_path / "out").rglob("2.png"))


def test_a_retried_unit_writes_the_same_bytes_and_one_record(tmp_path: Path) -> None:
    task, worker = make_task(tmp_path), RestoreWorker(FakeModel())
    first = worker(task)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    second = worker(task)

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")} == pictures
    assert [outcome.row.output_sha256 for outcome in second.outcomes] == [
        outcome.row.output_sha256 for outcome in first.outcomes
    ]
    assert sorted(read_units(str(tmp_path / "out")).outcomes, key=by_name) == list(second.outcomes)


def by_name(outcome: Outcome) -> str:
    return outcome.row.name


@pytest.mark.parametrize("bad", [(0,), (2,), (1, 4), (0, 1, 2, 3, 4)])
def test_a_face_that_fails_fails_alone(tmp_path: Path, bad: tuple[int, ...]) -> None:
    task = make_task(tmp_path)
    healthy = {
        outcome.row.name: outcome.row.output_sha256 for outcome in RestoreWorker(FakeModel())(task).outcomes
    }
    for path in (tmp_path / "out").glob("*.png"):
        path.unlink()
    report = RestoreWorker(FakeModel(broken=tuple(digest(tmp_path, number) for number in bad)))(task)

    for number, outcome in enumerate(report.outcomes):
        if number in bad:
            assert (outcome.row.status, outcome.row.reason, outcome.row.message) == (
                "failed",
                "restore_error",
                "the device said no",
            )
            assert not (tmp_path / "out" / f"{number}.png").exists()
        else:
            assert outcome.row.output_sha256 == healthy[outcome.row.name]


def test_a_request_that_the_cascade_refuses_is_no_failed_face(tmp_path: Path) -> None:
    class Refusing(FakeCascade):
        def restore(self, *_: object) -> None:  # type: ignore[override]
            raise UsageError("the cascade has no such mode")

    class RefusingModel(FakeModel):
        def load(self) -> FakeCascade:
            return Refusing(64, (), (), 0.0, "")

    with pytest.raises(UsageError, match="no such mode"):
        RestoreWorker(RefusingModel())(make_task(tmp_path))


def test_the_colour_profile_of_a_photo_is_that_of_its_restoration(tmp_path: Path) -> None:
    task = make_task(tmp_path, num_photos=1)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(tmp_path / "photos/0.png") as photo:
        photo.save(tmp_path / "photos/tagged.png", icc_profile=profile)
    tagged = next(ref for ref in task.source.refs() if ref.name == "tagged.png")
    RestoreWorker(FakeModel())(replace(task, items=(*task.items, WorkItem(tagged, "tagged.png"))))
    with Image.open(tmp_path / "out/0.png") as plain, Image.open(tmp_path / "out/tagged.png") as restored:
        assert (plain.info.get("icc_profile"), restored.info.get("icc_profile")) == (None, profile)


def test_a_photo_that_is_not_square_is_refused_not_squashed(tmp_path: Path) -> None:
    task = make_task(tmp_path, num_photos=1)
    (tmp_path / "photos/wide.png").write_bytes(encode(face(1, 24)[:12], "PNG"))
    wide = next(ref for ref in task.source.refs() if ref.name == "wide.png")
    report = RestoreWorker(FakeModel())(
        RestoreTask(0, task.source, (WorkItem(wide, "wide.png"),), task.output_uri, REQUEST)
    )

    assert [(outcome.row.status, outcome.row.reason) for outcome in report.outcomes] == [
        ("quarantined", "not_square")
    ]


def test_a_changed_original_is_not_copied(tmp_path: Path) -> None:
    task = make_task(tmp_path, num_photos=1)
    outcome = RestoreWorker(FakeModel())(task).outcomes[0]
    (tmp_path / "out/0.png").write_bytes(b"x" * outcome.output_bytes)

    copy = Copy(WorkItem(task.items[0].ref, "copy.png"), outcome.row)
    (row,) = (
        outcome.row for outcome in copy_duplicates(CopyTask(0, (copy,), task.output_uri, REQUEST)).outcomes
    )
    assert (row.status, row.reason, row.message, row.output) == (
        "failed",
        "original_changed",
        "0.png changed after it was restored",
        "",
    )
    assert not (tmp_path / "out/copy.png").exists()


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR])
def test_an_output_that_the_file_system_refuses_fails_its_photo_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write = storage.write_atomic

    def refuse_one(uri: storage.Uri, data: bytes, **options: Any) -> bool:
        if str(uri).endswith("sample-1/2.png"):
            raise OSError(number, os.strerror(number))
        return write(uri, data, **options)

    monkeypatch.setattr(storage, "write_atomic", refuse_one)
    task = make_task(tmp_path)
    items = tuple(replace(item, output=f"sample-0/{item.output}") for item in task.items)
    rows = [
        outcome.row
        for outcome in RestoreWorker(FakeModel())(
            replace(task, items=items, request=make_request(samples=2))
        ).outcomes
    ]
    assert [row.status for row in rows] == ["restored", "restored", "failed", "restored", "restored"]
    assert (rows[2].reason, os.strerror(number) in rows[2].message) == ("output_refused", True)
    assert not list((tmp_path / "out").rglob("2.png"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_a_place_that_takes_no_file_blames_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(uri: storage.Uri, data: bytes, **options: Any) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "write_atomic", refuse)
    with pytest.raises(storage.PlaceError, match=f"cannot be written .{os.strerror(number)}") as caught:
        RestoreWorker(FakeModel())(make_task(tmp_path))
    assert caught.value.exit_code == 3
    assert "0.png" not in str(caught.value)
    assert not read_units(str(tmp_path / "out")).outcomes
