"""Whole photos to samples: every usable face of each, its frame in the manifest, and nothing that moves the
faces of one photo apart.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffbfr.degradation import PRESETS
from diffbfr.errors import UsageError
from diffbfr.faces import photo as photo_module
from diffbfr.faces.align import Frame, align
from diffbfr.faces.similarity import Similarity
from diffbfr.images import decode, encode_png, pixel_digest
from diffbfr.shards import FaceFrame, ShardDamagedError, ShardedDataset
from diffbfr.shards.valid_area import valid_area
from pipelines import storage
from pipelines.dataset import reuse
from pipelines.dataset.contact_sheet import contact_sheet
from pipelines.dataset.detector_copy import DETECTOR, fetch_detector
from pipelines.dataset.manifest import open_dataset, read_quarantine
from pipelines.dataset.near_duplicates import find_near_duplicates
from pipelines.dataset.retry import begin_retry
from pipelines.dataset.samples import ShardConfig
from pipelines.dataset.verify import LOW_QUALITY, plan_verification, verify_shard
from pipelines.dataset.verify_records import verify_records
from pipelines.recipes.overrides import load
from pipelines.sources import open_source
from pipelines.steps import shard as shard_module
from pipelines.steps.shard import SHARD, finish_dataset, plan_shards, shard
from tests.diffbfr.faces.detector_files import wheel
from tests.diffbfr.faces.dots import DotDetector, draw

SCALES = {
    "one.png": [(0.3, 60.0, 60.0)],
    "three.png": [(0.3, 10.0, 40.0), (0.25, 200.0, 60.0), (0.08, 350.0, 240.0)],
    "edge.png": [(0.4, 270.0, -40.0)],
    "small.png": [(0.08, 100.0, 100.0)],
}
"""Photos of 400 x 300 px with faces of dots: scale and place of each frame of 512 px."""


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A detector of dots, which a child process would not have."""

    def call(function: Any, *arguments: Any, returns: type, seconds: float = 0.0) -> Any:
        return function(*arguments)

    photo_module._finder.cache_clear()
    reuse.open_sample_cache.cache_clear()
    monkeypatch.setattr(photo_module, "load_detector", lambda path: DotDetector())
    monkeypatch.setattr(shard_module, "run_sandboxed", call)
    yield
    photo_module._finder.cache_clear()
    reuse.open_sample_cache.cache_clear()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "dots.safetensors"
    file.write_bytes(b"dots")
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (name, faces) in enumerate(SCALES.items()):
        (folder / name).write_bytes(_photo(faces, seed=number))
    (folder / "none.png").write_bytes(_photo([], seed=9))
    (folder / "broken.png").write_bytes(_photo([], seed=9)[:200])
    return folder


def _photo(faces: list[tuple[float, float, float]], seed: int) -> bytes:
    photo = np.full((300, 400, 3), 128, np.uint8)
    photo += np.random.default_rng(seed).integers(0, 3, photo.shape, dtype=np.uint8)
    for scale, x, y in faces:
        draw(photo, Similarity(scale, 0.0, x, y))
    return encode_png(photo)


def _config(weights: Path, **changes: Any) -> ShardConfig:
    config = ShardConfig(64, 16, 2, 4, 0.0, 0.0, 3, PRESETS["paper"], align=True, detector=_digest(weights))
    return replace(config, **changes)


def _digest(weights: Path) -> str:
    return storage.digest(weights)


def _build(
    photos: Path, root: Path, weights: Path, reuse_from: tuple[str, ...] = (), **changes: Any
) -> ShardedDataset:
    config = _config(weights, **changes)
    tasks = plan_shards(open_source(photos), config, str(root), reuse_from, weights)
    for task in tasks:
        shard(task)
    finish_dataset(str(root), tasks)
    return open_dataset(root)


def _tars(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.tar")}


def _frame_of(face: FaceFrame) -> Frame:
    return Frame(Similarity(face.a, face.b, face.shift_x, face.shift_y))


def test_every_usable_face_is_a_sample_and_every_other_photo_has_its_reason(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    dataset = _build(photos, tmp_path / "data", weights)
    assert {sample.key: sample.source for sample in dataset.samples} == {
        "edge-00": "edge.png",
        "one-00": "one.png",
        "three-00": "three.png",
        "three-01": "three.png",
    }
    reasons = {row.source: (row.stage, row.reason) for row in read_quarantine(tmp_path / "data")}
    assert reasons == {
        "broken.png": ("decode", "truncated"),
        "none.png": ("align", "no_face"),
        "small.png": ("align", "too_small"),
    }
    for sample in dataset.samples:
        assert sample.face is not None
        photo = decode((photos / sample.source).read_bytes()).pixels
        cut = align(photo, _frame_of(sample.face), 64)
        assert sample.pixel_sha256 == pixel_digest(cut.pixels)
        assert (valid_area(sample.face, 64).astype(bool) == cut.valid).all()
        assert sample.face.num_found == len(SCALES[sample.source])
    assert dataset.sample("three-00").variants != dataset.sample("three-01").variants
    assert not verify_records(str(tmp_path / "data"))
    tasks = plan_verification(str(tmp_path / "data"), LOW_QUALITY)
    assert [report.problems for report in map(verify_shard, tasks)] == [()] * len(tasks)


def test_the_part_outside_of_the_photo_turns_with_a_flipped_target(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    dataset = _build(photos, tmp_path / "data", weights, variants=8)
    sample = dataset.sample("edge-00")
    assert sample.face is not None
    upright = valid_area(sample.face, 32)
    assert upright[:, 0].any()
    assert not upright[:, -1].any()  # the frame reaches beyond the right edge
    assert not upright[0].any()  # and beyond the upper one
    flips = [params.flip for params in sample.variants]
    assert set(flips) == {True, False}
    for variant, flip in enumerate(flips):
        expected = upright[:, ::-1] if flip else upright
        assert (dataset.valid("edge-00", variant, 32) == expected).all()
    assert dataset.valid("one-00", 0, 32).all()


def test_the_faces_of_a_photo_share_a_split_whatever_its_file(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(10):
        data = _photo([(0.3, 10.0, 40.0), (0.25, 200.0, 60.0)], seed)
        (folder / f"{seed:02d}.png").write_bytes(data)
    buffer = io.BytesIO()
    Image.open(folder / "05.png").save(buffer, format="TIFF")
    (folder / "again.tif").write_bytes(buffer.getvalue())
    samples = _build(folder, tmp_path / "data", weights, val_fraction=0.4, test_fraction=0.3).samples
    splits: dict[str, set[str]] = {}
    for sample in samples:
        splits.setdefault(sample.source, set()).add(sample.split)
    assert len(samples) == 22
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) > 1
    assert splits["again.tif"] == splits["05.png"]
    # two faces of one photo are two pictures, and a photo that is there twice has two of each
    assert find_near_duplicates(samples).identical == 4


def test_the_same_photos_give_the_same_bytes_and_other_datasets_lend_their_faces(
    photos: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(photos, tmp_path / "sets" / "a", weights)
    one = _build(photos, tmp_path / "other", weights)
    assert _tars(tmp_path / "sets" / "a") == _tars(tmp_path / "other")
    looked_at = []

    def count(function: Any, *arguments: Any, returns: type, seconds: float = 0.0) -> Any:
        looked_at.append(arguments[2])
        return function(*arguments)

    monkeypatch.setattr(shard_module, "run_sandboxed", count)
    again = _build(photos, tmp_path / "sets" / "b", weights, (str(tmp_path / "sets" / "a"),))
    assert _tars(tmp_path / "sets" / "b") == _tars(tmp_path / "other")
    assert again.info.content_id == one.info.content_id
    assert sorted(looked_at) == ["broken.png", "none.png", "small.png"]
    # another policy finds other faces, so that nothing of the old ones is taken
    _build(photos, tmp_path / "sets" / "c", weights, (str(tmp_path / "sets" / "a"),), max_enlargement=4.0)
    keys = [sample.key for sample in open_dataset(tmp_path / "sets" / "c").samples]
    assert keys == ["edge-00", "one-00", "small-00", "three-00", "three-01", "three-02"]


def test_a_retry_keeps_the_faces_and_looks_at_the_refused_photos_only(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    _build(photos, tmp_path / "data", weights)
    whole = _tars(tmp_path / "data")
    assert begin_retry(str(tmp_path / "data")) == (3, 2)
    (tmp_path / "data" / "plan").rename(tmp_path / "data" / "old-plan")  # it is written again
    again = _build(photos, tmp_path / "data", weights)
    assert _tars(tmp_path / "data") == whole
    assert len(again.samples) == 4


def test_a_worker_takes_the_detector_from_the_dataset_and_checks_it(
    photos: Path, tmp_path: Path, weights: Path
) -> None:
    tasks = plan_shards(open_source(photos), _config(weights), str(tmp_path / "data"), (), weights)
    weights.unlink()  # another machine has no such file
    copy = tmp_path / "data" / DETECTOR / f"{tasks[0].config.detector}.safetensors"
    assert fetch_detector(tasks[0].detector, tasks[0].config.detector) == str(copy)
    copy.write_bytes(b"other dots")
    fetch_detector.cache_clear()
    with pytest.raises(ShardDamagedError, match="not the face detector"):
        shard(tasks[0])
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other dots")
    with pytest.raises(UsageError, match="expected"):
        plan_shards(open_source(photos), tasks[0].config, str(tmp_path / "new"), (), other)
    with pytest.raises(UsageError, match="no detector was given"):
        plan_shards(open_source(photos), tasks[0].config, str(tmp_path / "new"))


@pytest.mark.slow
def test_a_real_detector_looks_at_the_photos_in_the_sandbox(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffbfr.faces.weights import convert_wheel
    from pipelines.sources.sandbox import run_sandboxed

    monkeypatch.setattr(shard_module, "run_sandboxed", run_sandboxed)
    weights = tmp_path / "mtcnn.safetensors"
    weights.write_bytes(convert_wheel(wheel()))  # random weights, which know no face
    tasks = plan_shards(open_source(photos / "one.png"), _config(weights), str(tmp_path / "d"), (), weights)
    report = shard(tasks[0])
    assert (report.committed, report.quarantined, report.faces) == (0, 1, 0)


def test_the_step_is_another_for_another_detector_policy_or_no_alignment(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_FACE_DETECTOR", str(weights))
    aligned = SHARD.config(load("smoke", overrides=("data.align=true",)))
    assert aligned["detector"] == _digest(weights)
    enlarged = load("smoke", overrides=("data.align=true", "data.max_enlargement=2"))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    named = load("smoke", overrides=("data.align=true", f"data.detector={other}"))
    configs = [aligned, SHARD.config(enlarged), SHARD.config(named), SHARD.config(load("smoke"))]
    assert len({json.dumps(config, sort_keys=True) for config in configs}) == 4
    with pytest.raises(UsageError, match=r"max_enlargement is 0\.5; expected 1"):
        SHARD.config(load("smoke", overrides=("data.align=true", "data.max_enlargement=0.5")))
    monkeypatch.setenv("DIFFBFR_FACE_DETECTOR", str(tmp_path / "absent.onnx"))
    with pytest.raises(UsageError, match="no face detector"):
        SHARD.config(load("smoke", overrides=("data.align=true",)))
    assert SHARD.config(load("smoke"))["detector"] == ""


def test_the_sheet_shows_where_the_photo_ends(photos: Path, tmp_path: Path, weights: Path) -> None:
    dataset = _build(photos, tmp_path / "data", weights)
    sheet = decode(contact_sheet(dataset, 4)).pixels
    edge = (np.abs(sheet.astype(int) - (255, 0, 200)).max(2) < 8).sum()
    assert 100 < edge < 2000


@pytest.mark.slow
def test_a_dataset_on_s3_carries_its_detector_to_every_machine(
    photos: Path, tmp_path: Path, weights: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    root = f"{s3_bucket}/whole"
    tasks = plan_shards(open_source(photos), _config(weights), root, (), weights)
    weights.unlink()
    for task in tasks:
        shard(task)
    finish_dataset(root, tasks)
    samples = open_dataset(root).samples
    assert [sample.key for sample in samples] == ["edge-00", "one-00", "three-00", "three-01"]
    (copy,) = (tmp_path / "cache" / "detectors").iterdir()
    assert copy.read_bytes() == b"dots"
    copy.write_bytes(b"damaged")
    fetch_detector.cache_clear()
    assert Path(fetch_detector(tasks[0].detector, tasks[0].config.detector)).read_bytes() == b"dots"
