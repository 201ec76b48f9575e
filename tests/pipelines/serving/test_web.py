"""The server of the app: the bytes of `diffbfr restore`, a refusal in one line, and bounds on what it holds."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.cluster import Cluster
from pipelines.flows.restore_archive import restore_archive
from pipelines.recipes.presets import smoke
from pipelines.serving.jobs import Job
from pipelines.serving.restorer import ServedCascade
from pipelines.serving.store import JobStore, ServerFullError, StoreLimits
from pipelines.sources.sandbox import WorkerFailure
from tests.pipelines.dot_photos import dot_detector, encoded, find_dots, photo_of_dots, whole_options
from tests.pipelines.fake_cascade import FakeModel
from tests.pipelines.serving.served import Served, served


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    find_dots(monkeypatch)
    with served(FakeModel()) as found:
        yield found


def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no face twice: a fake cascade is not consistent with any photo."""
    monkeypatch.setattr("pipelines.serving.web.PhotoSettings", _settings)


def _settings(**values: Any) -> Any:
    from pipelines.restoration.request import PhotoSettings

    return PhotoSettings(**values, min_consistency=0.0)


@pytest.mark.parametrize(
    ("name", "image_format", "options", "settings"),
    [
        ("two.png", "PNG", {}, {}),
        ("photo.jpg", "JPEG", {"samples": 3, "strength": 0.7}, {"strength": 0.7}),
        ("old.bmp", "BMP", {"format": "webp", "fidelity": 0.2}, {"file_format": "webp", "fidelity": 0.2}),
        ("big.webp", "WEBP", {"upscale": 2, "only": "largest"}, {"upscale": 2, "only": "largest"}),
        ("none.jpg", "JPEG", {"min_face": 50}, {"min_face": 50.0}),
        ("own.png", "PNG", {"adaptive": "true"}, {"adaptive": True}),
    ],
)
def test_the_bytes_are_those_of_a_restored_archive(
    server: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    image_format: str,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    lenient(monkeypatch)
    photo = encoded(photo_of_dots(3, 2), image_format)
    state = server.restore(photo, name=name, **options)
    (tmp_path / name).write_bytes(photo)
    chosen = whole_options(dot_detector(tmp_path), samples=options.get("samples", 1), **settings)
    config = smoke().cluster.__class__(num_workers=0)
    with Cluster(config) as cluster:
        report = restore_archive(str(tmp_path / name), str(tmp_path / "out"), FakeModel(), chosen, cluster)
    (row,) = report.rows
    written = sorted(
        path for path in (tmp_path / "out").rglob("*") if path.suffix in Image.registered_extensions()
    )
    assert (state["state"], state["status"], len(state["faces"])) == ("done", row.status, len(report.faces))
    assert sorted(server.files(state)) == sorted(path.read_bytes() for path in written)
    assert server.files(state)[0] == (tmp_path / "out" / row.output).read_bytes()


def test_a_photo_that_is_none_is_refused_in_one_line(server: Served) -> None:
    state = server.restore(b"this is no photo", name="note.jpg")
    assert (state["state"], state["reason"], state["files"]) == ("refused", "not_an_image", [])
    assert "\n" not in state["message"]
    assert "expected PNG" in state["message"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("api/photos?fidelity=2", 422, "fidelity is '2'; expected"),
        ("api/photos?samples=9", 422, "samples is '9'; expected"),
        ("api/photos?format=gif", 422, "format is 'gif'; expected"),
        ("api/photos/none", 404, "hand it in again"),
        ("nothing", 404, "open the page"),
    ],
)
def test_a_bad_request_is_answered_in_one_line(server: Served, path: str, status: int, words: str) -> None:
    is_post = "?" in path
    headers = {"Content_Type": "application/octet-stream"} if is_post else {}
    answer = server.ask(path, b"x" if is_post else None, **headers)
    assert answer.status == status
    assert words in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_a_picture_is_shown_as_png_jpeg_or_webp_and_a_file_is_only_saved(server: Served) -> None:
    state = server.restore(encoded(photo_of_dots(1, 1), "TIFF"), name="../../etc/ägg\r\n.tif")
    before = server.ask(f"api/photos/{state['id']}/before")
    after = server.ask(f"api/photos/{state['id']}/pictures/0")
    file = server.ask(f"api/photos/{state['id']}/files/0")
    assert (before.headers["content-type"], after.headers["content-type"]) == ("image/webp", "image/webp")
    assert Image.open(io.BytesIO(after.body)).size == (240, 120)
    assert file.headers["content-type"] == "application/octet-stream"
    assert file.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4gg%0D%0A.tif"


def test_a_removed_photo_is_gone(server: Served) -> None:
    state = server.restore(encoded(photo_of_dots(1, 1), "PNG"))
    assert server.ask(f"api/photos/{state['id']}", method="DELETE").status == 204
    assert server.ask(f"api/photos/{state['id']}").status == 404
    assert server.ask(f"api/photos/{state['id']}", method="DELETE").status == 404


def test_a_face_that_fails_and_a_decoder_that_breaks_cost_only_their_photos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import hashlib

    from pipelines.restoration import photo_reading

    find_dots(monkeypatch)
    lenient(monkeypatch)
    photos = [encoded(photo_of_dots(seed, 1), "PNG") for seed in range(4)]
    digests = [hashlib.sha256(photo).hexdigest() for photo in photos]
    read = photo_reading.read_whole_sandboxed

    def break_some(data: bytes, *rest: Any) -> Any:
        if data == photos[2]:
            return WorkerFailure("crashed", "it ended its process with SIGSEGV")
        if data == photos[3]:
            raise RuntimeError("a bug")
        return read(data, *rest)

    monkeypatch.setattr(photo_reading, "read_whole_sandboxed", break_some)
    with served(FakeModel(broken=(digests[1],))) as server:
        ids = [server.hand_in(photo).json["id"] for photo in photos]
        states = []
        for job in ids:
            while not (state := server.ask(f"api/photos/{job}").json)["has_ended"]:
                time.sleep(0.02)
            states.append((state["state"], state["reason"]))
    # a photo whose face failed is written with its own pixels there
    assert states == [
        ("done", ""),
        ("done", "restore_error"),
        ("refused", "crashed"),
        ("failed", "internal_error"),
    ]


def make_job(num_bytes: int) -> Job:
    from pipelines.restoration.request import PhotoSettings

    cascade = ServedCascade(FakeModel(), Path("w"), "0" * 64)
    return Job("a.png", bytes(num_bytes), cascade.request(1, PhotoSettings("")))


def test_what_is_held_has_bounds_of_number_time_and_bytes() -> None:
    now = [0.0]
    store = JobStore(StoreLimits(most_waiting=2, most_ended=3, keep_s=10, most_bytes=1000), lambda: now[0])
    jobs = [make_job(200) for _ in range(5)]
    for job in jobs[:2]:
        store.add(job)
    with pytest.raises(ServerFullError, match="2 photos wait already"), store.room_for(1):
        pass
    for job in jobs[:2]:
        store.end(job)
    for job in jobs[2:]:
        store.add(job)
        store.end(job)
    assert [store.get(job.id) is not None for job in jobs] == [False, False, True, True, True]
    with store.room_for(700):  # the oldest make room
        assert [store.get(job.id) is not None for job in jobs] == [False, False, False, False, True]
        with pytest.raises(ServerFullError, match="no room for"), store.room_for(400):
            pass
    now[0] = 11.0
    assert store.get(jobs[4].id) is None
    with store.room_for(1000):
        pass


def test_a_job_that_was_removed_while_it_waits_is_not_kept_at_its_end() -> None:
    store = JobStore(StoreLimits(most_bytes=1000))
    job = make_job(900)
    store.add(job)
    assert store.remove(job.id)
    store.end(job)
    assert store.get(job.id) is None
    with store.room_for(1000):
        pass


def test_ids_cannot_be_guessed() -> None:
    ids = {make_job(1).id for _ in range(100)}
    assert len(ids) == 100
    assert min(map(len, ids)) >= 32
