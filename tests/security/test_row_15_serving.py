"""A request to a served cascade costs its share of memory at most, and is refused by one line."""

import base64
import importlib
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffbfr.cascade import Cascade
from diffbfr.images import decode, encode_png
from diffbfr.synthetic import render_face
from pipelines.restoration import face_input
from tests.diffbfr.image_corpus import png_claiming
from tests.pipelines import poison
from tests.pipelines.tiny_cascade import HQ_PX, make_tiny_cascade


@pytest.fixture(scope="module")
def served() -> ModuleType:
    return importlib.import_module("pipelines.registry.pyfunc_model")


@pytest.fixture(scope="module")
def model(served: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_cascade(tmp_path_factory.mktemp("served") / "cascade")
    made = served.CascadeModel()
    made.load_context(SimpleNamespace(artifacts={"cascade": str(folder)}))
    assert isinstance(made._cascade, Cascade)
    return made


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refusal(served: ModuleType, model: Any, inputs: list[str]) -> str:
    with pytest.raises(served.RequestRefusedError) as caught:
        model.predict(None, inputs)
    error = caught.value
    error.message = f"Failed to predict data '{inputs}'"  # what MLflow's server does with it
    answer = json.loads(error.serialize_as_json())
    assert "stack_trace" not in answer
    assert "\n" not in answer["message"]
    assert "Traceback" not in answer["message"]
    assert len(answer["message"]) < 300
    return str(answer["message"])


def test_an_honest_request_is_answered_with_pictures(model: Any) -> None:
    face = encode_png(render_face(1, 64).pixels)
    (answer,) = model.predict(None, [text(face)])
    assert decode(base64.b64decode(answer)).pixels.shape == (HQ_PX, HQ_PX, 3)


def test_what_is_refused_is_one_line(served: ModuleType, model: Any) -> None:
    face = text(encode_png(render_face(1, 64).pixels))
    assert "65 images; at most 64" in refusal(served, model, [face] * 65)
    assert "image 1 is no base64" in refusal(served, model, [face, "no base64!"])
    assert "image 0: not_an_image" in refusal(served, model, [text(b"hello")])
    assert "image 0: too_many_pixels" in refusal(served, model, [text(png_claiming(4097, 4096))])
    assert "image 0: not_square" in refusal(
        served, model, [text(encode_png(np.zeros((32, 64, 3), np.uint8)))]
    )
    assert "at most 33554432 are read" in refusal(served, model, ["A" * (48 << 20)])


def test_a_picture_that_kills_its_decoder_costs_one_line(
    served: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_input, "read_face", poison.read_face)
    face = encode_png(render_face(1, 64).pixels)
    assert "image 0: crashed" in refusal(served, model, [text(face + poison.MARKS["crash"])])
    assert len(model.predict(None, [text(face)])) == 1


def test_an_error_of_our_own_shows_no_traceback(
    served: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret path /home/x")

    monkeypatch.setattr(model, "_restore", fail)
    line = refusal(served, model, [text(encode_png(render_face(1, 64).pixels))])
    assert line == "the restoration failed (RuntimeError); the server's log has the reason"
