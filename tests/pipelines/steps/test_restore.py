"""A unit of photos: batched across photos, repeatable to the byte, and one bad face never takes its neighbours along."""

import hashlib
from pathlib import Path

import pytest

from diffbfr.errors import DiffBFRError, UsageError
from pipelines.outcomes import Outcome, read_units
from pipelines.sources import open_source
from pipelines.steps.restore import Copy, CopyTask, RestoreTask, RestoreWorker, Work, copy_duplicates
from tests.pipelines.fake_cascade import FakeCascade, FakeModel
from tests.pipelines.sample_archive import encode, face


def make_task(tmp_path: Path, num_photos: int = 5) -> RestoreTask:
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    for number in range(num_photos):
        (folder / f"{number}.png").write_bytes(encode(face(number, 24), "PNG"))
    source = open_source(folder, every_file=True)
    works = tuple(Work(ref, f"{Path(ref.name).stem}.png") for ref in source.refs())
    return RestoreTask(0, source, works, str(tmp_path / "out"), "fast", 0, 4)


def digest(tmp_path: Path, number: int) -> str:
    return hashlib.sha256((tmp_path / f"photos/{number}.png").read_bytes()).hexdigest()


def test_batches_go_across_photos_and_all_have_the_same_size(tmp_path: Path) -> None:
    RestoreWorker(FakeModel(log=str(tmp_path / "log")))(make_task(tmp_path))
    sizes, keys = zip(*(line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()), strict=True)

    assert sizes == ("4", "4")
    assert " ".join(keys).split() == [f"{digest(tmp_path, number)}/0/0" for number in range(5)]


def test_a_retried_unit_writes_the_same_bytes_and_one_record(tmp_path: Path) -> None:
    task, worker = make_task(tmp_path), RestoreWorker(FakeModel())
    first = worker(task)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    second = worker(task)

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")} == pictures
    assert [outcome.row.output_sha256 for outcome in second.outcomes] == [outcome.row.output_sha256 for outcome in first.outcomes]
    assert sorted(read_units(str(tmp_path / "out")), key=by_name) == list(second.outcomes)


def by_name(outcome: Outcome) -> str:
    return outcome.row.name


@pytest.mark.parametrize("bad", [(0,), (2,), (1, 4), (0, 1, 2, 3, 4)])
def test_a_face_that_fails_fails_alone(tmp_path: Path, bad: tuple[int, ...]) -> None:
    task = make_task(tmp_path)
    healthy = {outcome.row.name: outcome.row.output_sha256 for outcome in RestoreWorker(FakeModel())(task).outcomes}
    for path in (tmp_path / "out").glob("*.png"):
        path.unlink()
    report = RestoreWorker(FakeModel(broken=tuple(digest(tmp_path, number) for number in bad)))(task)

    for number, outcome in enumerate(report.outcomes):
        if number in bad:
            assert (outcome.row.status, outcome.row.reason, outcome.row.message) == ("failed", "restore_error", "the device said no")
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


def test_a_photo_that_is_not_square_is_refused_not_squashed(tmp_path: Path) -> None:
    task = make_task(tmp_path, num_photos=1)
    (tmp_path / "photos/wide.png").write_bytes(encode(face(1, 24)[:12], "PNG"))
    wide = next(ref for ref in task.source.refs() if ref.name == "wide.png")
    report = RestoreWorker(FakeModel())(RestoreTask(0, task.source, (Work(wide, "wide.png"),), task.output_uri, "fast", 0, 4))

    assert [(outcome.row.status, outcome.row.reason) for outcome in report.outcomes] == [("quarantined", "not_square")]


def test_a_changed_original_is_not_copied(tmp_path: Path) -> None:
    task = make_task(tmp_path, num_photos=1)
    outcome = RestoreWorker(FakeModel())(task).outcomes[0]
    (tmp_path / "out/0.png").write_bytes(b"x" * outcome.output_bytes)

    with pytest.raises(DiffBFRError, match=r"0\.png changed after it was restored"):
        copy_duplicates(CopyTask(0, (Copy(Work(task.works[0].ref, "copy.png"), outcome.row),), task.output_uri))
