"""Whole photos with faces of dots, and a restoration of them without a sandboxed process."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffbfr.faces import photo as photo_module
from diffbfr.faces.similarity import Similarity
from pipelines.flows.restore_archive import RestoreOptions
from pipelines.restoration import whole_input
from pipelines.restoration.request import PhotoSettings
from pipelines.sources.sandbox_protocol import decode_value, encode_answer, read_answer
from pipelines.sources.weights_ref import WeightsRef, pin_weights
from tests.diffbfr.faces.dots import DotDetector, draw

SCALE = 0.1
"""Pixels of the photo for one of the frame of 512 px: 12.6 px between the eyes."""


def photo_of_dots(seed: int, faces: int, height: int = 120, width: int = 240) -> NDArray[np.uint8]:
    """Gray noise with faces beside each other, each drawn from its upper left corner."""
    noise = np.random.default_rng(seed).integers(100, 140, (height, width, 1), dtype=np.uint8)
    photo = np.ascontiguousarray(np.repeat(noise, 3, axis=2))
    for number in range(faces):
        draw(photo, Similarity(SCALE, 0.0, 20.0 + 70 * number, 30.0))
    return photo


def encoded(pixels: NDArray[Any], image_format: str, **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def find_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find faces of dots in this process; the answer passes through the format of the sandboxed one."""
    photo_module._finder.cache_clear()
    monkeypatch.setattr(photo_module, "load_detector", lambda path: DotDetector())

    def here(function: Callable[..., Any], *arguments: Any, returns: type[Any], seconds: float) -> Any:
        stream = io.BytesIO(b"".join(encode_answer("done", function(*arguments))))
        return decode_value(read_answer(stream.read), returns)

    monkeypatch.setattr(whole_input, "run_sandboxed", here)
    monkeypatch.setattr(whole_input, "warm_up", lambda function: None)


def dot_detector(folder: Path) -> WeightsRef:
    """A file that stands for the weights."""
    weights = folder / "dots.onnx"
    weights.write_bytes(b"dots")
    return pin_weights(weights)


def whole_options(detector: WeightsRef, *, samples: int = 1, **settings: Any) -> RestoreOptions:
    """Options for whole photos, without redrawing unless asked."""
    photos = PhotoSettings(detector.sha256, **{"min_consistency": 0.0, **settings})
    return RestoreOptions(aligned=False, unit_size=4, samples=samples, photos=photos, detector=detector)
