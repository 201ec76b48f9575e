"""A photo that kills its decoder, never ends or exhausts the memory costs one row, wherever it is decoded."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffbfr.errors import UsageError
from diffbfr.images import ImageRefused
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.dataset.manifest import open_dataset
from pipelines.evaluation.types import EvaluateTask
from pipelines.execution.model_ref import pin_model
from pipelines.flows.restore_archive import RestoreOptions, restore_archive
from pipelines.flows.restore_page import write_restore_page
from pipelines.restoration import face_input
from pipelines.restoration.work import WorkItem
from pipelines.sources import open_source, sandboxed_images
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.steps.evaluate import evaluate
from pipelines.steps.restore import RestoreTask, RestoreWorker
from tests.pipelines import poison
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.restore_requests import REQUEST
from tests.pipelines.sample_archive import encode, face
from tests.pipelines.tiny_cascade import HQ_PX, LQ_PX, make_tiny_cascade
from tests.pipelines.tiny_dataset import CONFIG, build, picture

HOSTILE = {
    "crash": "crashed",
    "abort": "crashed",
    "exit": "crashed",
    "endless": "timed_out",
    "hog": "out_of_memory",
}


def photos(folder: Path, hostile: dict[int, str], num: int = 8) -> Path:
    """A folder of `num` faces, some with a mark at their end that makes the decoder of these tests misbehave."""
    folder.mkdir()
    for number in range(num):
        mark = poison.MARKS.get(hostile.get(number, ""), b"")
        (folder / f"{number}.png").write_bytes(encode(face(number, 24), "PNG") + mark)
    return folder


def photos_of(folder: Path, px: int) -> None:
    """Two large faces."""
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(picture(number, px, px))


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that misbehave at marked photos, under limits that a test can wait for."""
    limited = partial(run_sandboxed, seconds=4.0, num_bytes=1 << 29)
    monkeypatch.setattr(face_input, "run_sandboxed", limited)
    monkeypatch.setattr(face_input, "read_face", poison.read_face)
    monkeypatch.setattr(sandboxed_images, "run_sandboxed", limited)
    for name in ("_enlarge", "_reduce", "_decode", "decode_trusted"):
        monkeypatch.setattr(sandboxed_images, name, poison.decode_image)


def restore(source: Path, output: Path) -> Any:
    with Cluster(ClusterConfig(num_workers=0)) as cluster:
        options = RestoreOptions(aligned=True, unit_size=8)
        return restore_archive(str(source), str(output), FakeModel(), options, cluster)


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_in_restore_each_has_one_row_and_its_batch_mates_are_as_without_it(tmp_path: Path) -> None:
    hostile = dict(zip((0, 2, 3, 5, 7), HOSTILE, strict=True))
    honest = restore(photos(tmp_path / "honest", {}), tmp_path / "expected")
    report = restore(photos(tmp_path / "hostile", hostile), tmp_path / "out")
    assert (report.counts.restored, report.counts.quarantined, report.counts.failed) == (3, 5, 0)
    for row, expected in zip(report.rows, honest.rows, strict=True):
        number = int(Path(row.name).stem)
        if number in hostile:
            assert (row.status, row.reason) == ("quarantined", HOSTILE[hostile[number]])
            assert row.message.startswith("decoding it failed: ")
            assert not (tmp_path / "out" / row.name).exists()
        else:
            assert row.output_sha256 == expected.output_sha256
    again = restore(tmp_path / "hostile", tmp_path / "out")
    assert again.num_worked == 0


@pytest.mark.slow
@pytest.mark.usefixtures("misbehaving")
def test_a_page_shows_what_it_can(tmp_path: Path) -> None:
    report = restore(photos(tmp_path / "photos", {}, 3), tmp_path / "out")
    for number, how in enumerate(("crash", "endless", "hog")):
        with (tmp_path / "photos" / f"{number}.png").open("ab") as file:
            file.write(poison.MARKS[how])
        with (tmp_path / "out" / f"{number}.png").open("ab") as file:
            file.write(poison.MARKS["crash"])
    page = Path(write_restore_page(report)).read_text()
    assert page.count("no image") >= 3


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("how", ["crash", "hog"])
def test_in_evaluate_and_verify_an_image_that_kills_its_decoder_is_a_damaged_one(how: str) -> None:
    data = encode(face(0, 24), "PNG") + poison.MARKS[how]
    for decode in (sandboxed_images.decode_sandboxed, sandboxed_images.decode_ours_sandboxed):
        with pytest.raises(ImageRefused, match="decoding it failed") as caught:
            decode(data)
        assert caught.value.reason_code == "corrupt"


@pytest.mark.parametrize("answer", ["shape", "type", "kept"])
def test_pixels_of_another_kind_than_promised_are_no_answer(
    answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(face_input, "read_face", LIARS[answer])
    found = face_input.read_face_sandboxed(b"", 16, 64)
    assert isinstance(found, WorkerFailure)
    assert found.reason == "crashed"


LIARS: dict[str, Callable[..., Any]] = {
    "shape": poison.face_of_another_size,
    "type": poison.face_of_floats,
    "kept": poison.face_with_odd_opacity,
}


def test_nothing_is_decoded_in_the_process_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever decodes here marks the folder with its PID; the worker's is not among them."""
    monkeypatch.setenv("DIFFBFR_TEST_MARKS", str(tmp_path))
    monkeypatch.setattr(face_input, "read_face", poison.marking_read_face)
    source = open_source(photos(tmp_path / "photos", {}, 2), every_file=True)
    items = tuple(WorkItem(ref, ref.name) for ref in source.refs())
    RestoreWorker(FakeModel())(RestoreTask(0, source, items, str(tmp_path / "out"), REQUEST))
    pids = {int(path.name) for path in tmp_path.glob("[0-9]*")}
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.slow
def test_evaluate_decodes_a_dataset_in_the_sandbox_and_names_it_when_an_image_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset may be another's; a rank that trains on it trusts it."""
    config = replace(CONFIG, hq_px=HQ_PX, lq_px=LQ_PX, variants=1, test_fraction=1.0, val_fraction=0.0)
    photos_of(tmp_path / "photos", HQ_PX)
    build(tmp_path / "photos", tmp_path / "data", config)
    keys = tuple(open_dataset(tmp_path / "data").keys("test"))
    task = EvaluateTask(0, str(tmp_path / "data"), pin_model(make_tiny_cascade(tmp_path / "cascade")), keys)
    monkeypatch.setattr(sandboxed_images, "decode_trusted", poison.crash)
    with pytest.raises(UsageError, match=r"holds an image that cannot be decoded .*data verify"):
        evaluate(task)
