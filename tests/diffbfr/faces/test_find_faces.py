"""The one call for a worker, with a detector of dots, and its way through the pipe of a sandboxed process."""

import io
from pathlib import Path

import numpy as np
import pytest

from diffbfr.faces import photo as photo_module
from diffbfr.faces.align import align, fit_frame
from diffbfr.faces.choose import ChoicePolicy
from diffbfr.faces.photo import PhotoFaces, detection_pixels, find_faces
from diffbfr.faces.similarity import Similarity
from pipelines.sources.sandbox_protocol import decode_value, encode_answer, read_answer
from tests.diffbfr.faces.dots import DotDetector, draw

POLICY = ChoicePolicy(model_px=256)


@pytest.fixture(autouse=True)
def _dots(monkeypatch: pytest.MonkeyPatch) -> None:
    photo_module._finder.cache_clear()
    monkeypatch.setattr(photo_module, "load_detector", lambda path: DotDetector())


def photo_of_dots() -> np.ndarray:
    photo = np.full((300, 400, 3), 128, np.uint8)
    for x, scale in ((20.0, 0.3), (190.0, 0.2), (320.0, 0.1)):
        draw(photo, Similarity(scale, 0.0, x, 40.0))
    return photo


def test_every_face_has_a_verdict_and_its_frame() -> None:
    photo = photo_of_dots()
    found = find_faces(photo, "weights", POLICY, 64)
    assert found.detector == "dots"
    assert len(found.verdicts) == len(found.aligned) == 3
    for verdict, aligned in zip(found.verdicts, found.aligned, strict=True):
        alone = align(photo, fit_frame(verdict.face.points_array), 64)
        assert (aligned.pixels == alone.pixels).all()
        assert (aligned.quad == alone.quad).all()
        assert aligned.valid.shape == (64, 64)
    sizes = sorted(round(verdict.eyes_px / 12.6) for verdict in found.verdicts)
    assert sizes == [1, 2, 3]


def test_the_result_passes_through_the_pipe_of_a_sandboxed_process_unchanged() -> None:
    found = find_faces(photo_of_dots(), "weights", POLICY, 48)
    stream = io.BytesIO(b"".join(encode_answer("done", found)))
    received = decode_value(read_answer(stream.read), PhotoFaces)
    assert received.detector == found.detector
    for ours, theirs in zip(found.verdicts, received.verdicts, strict=True):
        assert ours.face == theirs.face
        assert ours.reason == theirs.reason
    for one, other in zip(found.aligned, received.aligned, strict=True):
        assert one.frame == other.frame
        for name in ("pixels", "quad", "valid"):
            assert (getattr(one, name) == getattr(other, name)).all()


@pytest.mark.parametrize("shape", [(300, 400), (300, 400, 1), (300, 400, 2), (300, 400, 4)])
def test_a_detector_sees_8_bit_rgb_of_any_photo(shape: tuple[int, ...]) -> None:
    deep = (np.arange(np.prod(shape)).reshape(shape) % 256 * 257).astype(np.uint16)
    if deep.shape[2:] in ((2,), (4,)):
        deep[..., -1] = 65535
    seen = detection_pixels(deep)
    assert seen.shape == (300, 400, 3)
    assert (seen[..., 0] == (deep if deep.ndim == 2 else deep[..., 0]) // 257).all()
    eight = seen[..., 0]
    assert (detection_pixels(eight)[..., 2] == eight).all()


def test_a_16_bit_photo_has_the_faces_of_its_8_bit_one() -> None:
    photo = photo_of_dots()
    deep = find_faces(photo.astype(np.uint16) * 257, "weights", POLICY, 64)
    flat = find_faces(photo, "weights", POLICY, 64)
    assert [v.face for v in deep.verdicts] == [v.face for v in flat.verdicts]
    assert [v.reason for v in deep.verdicts] == [v.reason for v in flat.verdicts]
    assert all((a.pixels == b.pixels).all() for a, b in zip(deep.aligned, flat.aligned, strict=True))


def test_a_photo_without_a_face_has_none() -> None:
    found = find_faces(np.full((90, 90), 128, np.uint8), str(Path("weights")), POLICY, 64)
    assert found.verdicts == found.aligned == ()
