"""Whole photos: each comes back in its format with its faces restored, and nothing else of it changes."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.faces.align import Frame
from diffbfr.faces.paste import mask_of
from diffbfr.faces.similarity import Similarity
from diffbfr.metrics.face_resnet import FaceResNet
from pipelines.cluster import Cluster
from pipelines.dataset.manifest import LedgerRow
from pipelines.flows.restore_archive import RestoreOptions, RestoreReport, require_clean, restore_archive
from pipelines.flows.restore_page import write_restore_page
from pipelines.flows.restore_verify import verify_restoration
from pipelines.restoration import whole_input
from pipelines.restoration.face_rows import read_faces
from pipelines.sources.weights_ref import WeightsRef, pin_weights
from tests.pipelines.dot_photos import (
    SCALE,
    dot_detector,
    encoded,
    find_dots,
    photo_of_dots,
    whole_options,
)
from tests.pipelines.fake_cascade import FakeModel


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsRef:
    find_dots(monkeypatch)
    return dot_detector(tmp_path)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A photo of each format and depth, of none to three faces, in folders."""
    folder = tmp_path / "in"
    (folder / "trip").mkdir(parents=True)
    pixels = photo_of_dots(1, 2)
    alpha = np.full((*pixels.shape[:2], 1), 200, np.uint8)
    deep = (photo_of_dots(3, 1).astype(np.uint16) * 257)[..., ::-1]
    import cv2

    (folder / "two.png").write_bytes(encoded(pixels, "PNG"))
    (folder / "clear.webp").write_bytes(encoded(np.dstack([pixels, alpha]), "WEBP", lossless=True))
    (folder / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    (folder / "trip" / "three.tif").write_bytes(encoded(photo_of_dots(4, 3), "TIFF"))
    (folder / "trip" / "photo.jpg").write_bytes(encoded(photo_of_dots(5, 1), "JPEG", quality=92))
    (folder / "trip" / "old.bmp").write_bytes(encoded(photo_of_dots(6, 1), "BMP"))
    (folder / "trip" / "view.bmp").write_bytes(encoded(photo_of_dots(7, 0), "BMP"))
    (folder / "view.jpg").write_bytes(encoded(photo_of_dots(8, 0), "JPEG"))
    return folder


def restore(
    source: Path, output: Path, cluster: Cluster, options: RestoreOptions, model: FakeModel | None = None
) -> RestoreReport:
    return restore_archive(str(source), str(output), model or FakeModel(), options, cluster)


def by_name(report: RestoreReport) -> dict[str, LedgerRow]:
    return {row.name: row for row in report.rows}


def outside(shape: tuple[int, ...], faces: int, upscale: int = 1) -> NDArray[np.bool_]:
    """Pixels that no mask of the faces reaches."""
    height, width = shape[0], shape[1]
    free = np.ones((height, width), bool)
    for number in range(faces):
        frame = Frame(Similarity(SCALE * upscale, 0.0, (20.0 + 70 * number) * upscale, 30.0 * upscale))
        mask = mask_of(frame, height, width)
        assert mask is not None
        free[mask.rows, mask.columns] &= mask.share <= 0
    return free


def test_every_photo_comes_back_under_its_name_in_its_format(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    report = restore(album, tmp_path / "out", serial, whole_options(detector))
    rows = by_name(report)

    assert {name: (row.status, row.num_faces, row.output) for name, row in rows.items()} == {
        "two.png": ("restored", 2, "two.png"),
        "clear.webp": ("restored", 2, "clear.webp"),
        "deep.png": ("restored", 1, "deep.png"),
        "trip/three.tif": ("restored", 3, "trip/three.tif"),
        "trip/photo.jpg": ("restored", 1, "trip/photo.jpg"),
        "trip/old.bmp": ("restored", 1, "trip/old.bmp.png"),
        "trip/view.bmp": ("no_face", 0, "trip/view.bmp"),
        "view.jpg": ("no_face", 0, "view.jpg"),
    }
    assert (report.counts.restored, report.counts.no_face) == (6, 2)
    for name, row in rows.items():
        before, after = (album / name).read_bytes(), (tmp_path / "out" / row.output).read_bytes()
        assert (row.sha256, row.output_sha256) == tuple(
            hashlib.sha256(data).hexdigest() for data in (before, after)
        )
        if row.status == "no_face":
            assert before == after
            assert row.model_digest == ""
            continue
        assert before != after
        assert b"compositeWithTrainedAlgorithmicMedia" in after
        with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
            assert new.format == ("PNG" if name.endswith("bmp") else old.format)
            assert (new.size, new.mode) == (old.size, old.mode)
            if new.format != "JPEG":
                changed = (np.asarray(old) != np.asarray(new)).any(2)
                free = outside(changed.shape, row.num_faces)
                assert not changed[free].any()
                assert changed[~free].mean() > 0.5
    assert [(face.photo, face.face) for face in report.faces] == [
        (name, number) for name in rows for number in range(rows[name].num_faces)
    ]
    assert read_faces(str(tmp_path / "out")) == list(report.faces)
    for face in report.faces:
        assert face.status == "restored"
        assert face.eyes_px == pytest.approx(12.6, abs=0.5)
        assert len(face.points) == 10
        assert face.consistency is not None


def test_a_rerun_does_nothing_and_a_check_finds_what_differs(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    options, out = whole_options(detector), tmp_path / "out"
    first = restore(album, out, serial, options)
    digests = {row.name: row.output_sha256 for row in first.rows}
    assert write_restore_page(first) is not None
    again = restore(album, out, serial, options)
    assert (again.num_worked, again.rows, again.faces) == (0, first.rows, first.faces)
    assert verify_restoration(str(out), serial).problems == ()

    (out / "faces.parquet").write_bytes(b"")
    (out / "two.png").write_bytes(b"")
    assert {problem.path for problem in verify_restoration(str(out), serial).problems} == {
        "faces.parquet",
        "two.png",
    }
    mended = restore(album, out, serial, options)
    assert mended.num_worked == 1
    assert {row.name: row.output_sha256 for row in mended.rows} == digests
    assert write_restore_page(mended) is not None
    assert verify_restoration(str(out), serial).problems == ()


def test_a_face_that_fails_keeps_its_pixels_and_is_tried_again(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    whole = restore(album, tmp_path / "whole", serial, whole_options(detector))
    broken = f"{by_name(whole)['trip/three.tif'].sha256}/1/"
    report = restore(album, tmp_path / "out", serial, whole_options(detector), FakeModel(broken=(broken,)))

    row = by_name(report)["trip/three.tif"]
    assert (row.status, row.reason, row.num_faces) == ("failed", "restore_error", 2)
    assert row.message == "1 of 3 faces failed: the device said no"
    states = [face.status for face in report.faces if face.photo == "trip/three.tif"]
    assert states == ["restored", "failed", "restored"]
    with Image.open(album / "trip/three.tif") as old, Image.open(tmp_path / "out" / row.output) as new:
        changed = (np.asarray(old) != np.asarray(new)).any(2)
    failed = next(face for face in report.faces if face.status == "failed")
    assert not changed[int(failed.top) : int(failed.bottom), int(failed.left) : int(failed.right)].any()
    assert changed.any()
    with pytest.raises(IncompleteError, match=r"1 of 8 inputs failed \(first: trip/three.tif"):
        require_clean(report)

    mended = restore(album, tmp_path / "out", serial, whole_options(detector))
    assert mended.num_worked == 1
    assert {row.name: row.output_sha256 for row in mended.rows} == {
        row.name: row.output_sha256 for row in whole.rows
    }


def test_a_doubtful_face_is_drawn_once_more_from_the_lowest_start(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    log = tmp_path / "log"
    report = restore(
        album / "trip",
        tmp_path / "out",
        serial,
        whole_options(detector, min_consistency=90.0),
        FakeModel(log=str(log)),
    )
    assert [(face.attempts, face.low_confidence) for face in report.faces] == [(2, True)] * 5
    assert {face.fidelity for face in report.faces} <= {0.5, 1.0}
    kept = restore(album / "trip", tmp_path / "kept", serial, whole_options(detector))
    assert [(face.attempts, face.low_confidence, face.fidelity) for face in kept.faces] == [
        (1, False, 0.5)
    ] * 5


def test_with_adaptive_fidelity_each_face_has_the_start_of_its_own_detail(
    tmp_path: Path, serial: Cluster, detector: WeightsRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "two.png").write_bytes(encoded(photo_of_dots(1, 2), "PNG"))
    seen: list[tuple[int, ...]] = []

    def detail(gray: NDArray[np.float32]) -> float:
        seen.append(gray.shape)
        return 0.2 * len(seen)

    monkeypatch.setattr(whole_input, "kept_detail", detail)
    report = restore(folder, tmp_path / "out", serial, whole_options(detector, adaptive=True))
    assert [face.fidelity for face in report.faces] == pytest.approx([0.6, 0.7])
    assert seen == [(64, 64)] * 2
    with pytest.raises(UsageError, match="was begun with adaptive True"):
        restore(folder, tmp_path / "out", serial, whole_options(detector))


def test_faces_of_different_photos_share_a_batch(
    tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, faces in enumerate((1, 3, 0, 2)):
        (folder / f"{number}.png").write_bytes(encoded(photo_of_dots(number, faces), "PNG"))
    log = tmp_path / "log"
    restore(
        folder,
        tmp_path / "out",
        serial,
        whole_options(detector),
        FakeModel(log=str(log), is_batch_invariant=True),
    )
    assert [line.split(" ", 1)[0] for line in log.read_text().splitlines()] == ["4", "2"]


def test_several_draws_and_their_spread_are_whole_photos(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    single = by_name(restore(album, tmp_path / "one", serial, whole_options(detector)))
    report = restore(album, tmp_path / "out", serial, whole_options(detector, samples=3))
    for name, row in by_name(report).items():
        mirrored = single[name].output
        assert row.output == f"sample-0/{mirrored}"
        assert row.output_sha256 == single[name].output_sha256
        files = [tmp_path / "out" / f"sample-{number}/{mirrored}" for number in range(3)]
        distinct = {path.read_bytes() for path in files}
        assert len(distinct) == (3 if row.num_faces else 1)
        spread = mirrored if mirrored.endswith(".png") else f"{mirrored}.png"
        with Image.open(tmp_path / "out" / "spread" / spread) as heat:
            levels = np.asarray(heat)[..., 0]
        assert levels.shape == (120, 240)
        assert bool(levels.any()) == bool(row.num_faces)
        assert (row.spread > 0) == bool(row.num_faces)
        if row.num_faces:
            assert not levels[outside(levels.shape, row.num_faces)].any()
    assert verify_restoration(str(tmp_path / "out"), serial).outputs == 8 * 4


def test_a_format_for_all_and_a_larger_size_are_given_to_photos_without_faces_too(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    rows = by_name(
        restore(album, tmp_path / "out", serial, whole_options(detector, file_format="png", upscale=2))
    )
    assert {row.output for row in rows.values()} == {
        "two.png",
        "clear.png",
        "deep.png",
        "trip/three.png",
        "trip/photo.png",
        "trip/old.png",
        "trip/view.png",
        "view.png",
    }
    for row in rows.values():
        with Image.open(tmp_path / "out" / row.output) as picture:
            assert (picture.format, picture.size) == ("PNG", (480, 240))
            is_signed = "XML:com.adobe.xmp" in picture.info
        assert is_signed == (row.status == "restored")


def test_at_strength_0_no_pixel_changes_and_no_model_is_named(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    report = restore(album, tmp_path / "out", serial, whole_options(detector, strength=0.0))
    for name in ("two.png", "clear.webp", "trip/three.tif"):
        after = (tmp_path / "out" / name).read_bytes()
        assert b"TrainedAlgorithmicMedia" not in after
        with Image.open(album / name) as old, Image.open(io.BytesIO(after)) as new:
            assert (np.asarray(old) == np.asarray(new)).all()
    assert report.counts.restored == 6


def test_what_a_format_cannot_hold_is_refused_in_one_line(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    rows = by_name(restore(album, tmp_path / "out", serial, whole_options(detector, file_format="jpeg")))
    refused = {name: (row.reason, row.message) for name, row in rows.items() if row.status == "quarantined"}
    assert refused == {
        "clear.webp": (
            "has_alpha",
            "the photo has transparent pixels, and JPEG holds none; choose --format png, or leave it out",
        ),
        "deep.png": (
            "unsupported_pixels",
            "the photo has 16 bits a channel, and JPEG holds 8; choose --format png, or leave it out",
        ),
    }
    assert rows["view.jpg"].output_sha256 == rows["view.jpg"].sha256


def test_equal_photos_are_restored_once_and_each_has_its_file(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    for name, copy in (("trip/old.bmp", "z1.bmp"), ("trip/view.bmp", "z2.bmp"), ("two.png", "z3")):
        (album / copy).write_bytes((album / name).read_bytes())
    report = restore(album, tmp_path / "out", serial, whole_options(detector))
    rows = by_name(report)
    assert {name: rows[name].output for name in ("z1.bmp", "z2.bmp")} == {
        "z1.bmp": "z1.bmp.png",
        "z2.bmp": "z2.bmp",
    }
    for name in ("z1.bmp", "z2.bmp"):
        row, original = rows[name], rows[rows[name].duplicate_of]
        assert (row.status, row.output_sha256) == ("duplicate", original.output_sha256)
        copied = (tmp_path / "out" / row.output).read_bytes()
        assert hashlib.sha256(copied).hexdigest() == row.output_sha256
    assert {face.photo for face in report.faces}.isdisjoint({"z1.bmp", "z2.bmp"})


def test_a_face_network_compares_the_faces_before_and_after(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    torch.manual_seed(0)
    save_file(FaceResNet().state_dict(), tmp_path / "face.safetensors")
    options = replace(
        whole_options(detector), identity=pin_weights(tmp_path / "face.safetensors", "face network")
    )
    report = restore(album, tmp_path / "out", serial, options)
    found = [face.identity for face in report.faces]
    assert all(cosine is not None and -1 <= cosine <= 1 for cosine in found)
    assert len(set(found)) > 1
    (tmp_path / "face.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"the face network .* has sha256"):
        restore(album / "trip", tmp_path / "again", serial, options)


def test_a_failed_draw_counts_its_face_once(
    album: Path, tmp_path: Path, serial: Cluster, detector: WeightsRef
) -> None:
    sha256 = hashlib.sha256((album / "trip/three.tif").read_bytes()).hexdigest()
    broken = FakeModel(broken=(f"{sha256}/1/2",))
    report = restore(album / "trip", tmp_path / "out", serial, whole_options(detector, samples=3), broken)
    assert by_name(report)["three.tif"].message == "1 of 3 faces failed: the device said no"
