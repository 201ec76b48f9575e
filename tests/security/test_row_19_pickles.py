"""What a process that decodes untrusted bytes sends is never unpickled, and its arrays hold numbers alone."""

import ast
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.restoration.face_input import FaceInput
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.sources.sandbox_protocol import MalformedAnswerError, decode_value, read_answer
from tests.pipelines.poison import send_raw

ROOT = Path(__file__).parents[2]


class Exploit:
    """Unpickling it makes a folder."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.place,)


def framed(value: object, blocks: list[bytes], kind: str = "done") -> bytes:
    header = json.dumps({"kind": kind, "value": value, "blocks": [len(block) for block in blocks]}).encode()
    return struct.pack("<I", len(header)) + header + b"".join(blocks)


def answers(place: str) -> dict[str, bytes]:
    bomb = pickle.dumps(Exploit(place))
    array = {"array": 0, "dtype": "|O", "shape": [1]}
    return {
        "a pickle": bomb,
        "a pickle with a length": struct.pack("<Q", len(bomb)) + bomb,
        "a framed pickle": struct.pack("<I", len(bomb)) + bomb,
        "objects in an array": framed({"fields": {"width": 1, "height": 1, "pixels": array}}, [bomb]),
        "a structured array": framed({**array, "dtype": "[('a', 'O')]"}, [bomb]),
        "an error class": framed({"dict": {"class": "os.system", "message": "x"}}, [], "raised"),
        "a huge header": struct.pack("<I", 0xFFFFFFFF),
        "huge blocks": framed(None, [])[:4]
        + b'{"kind": "done", "value": null, "blocks": [4611686018427387904]}',
        "deep": struct.pack("<I", 200_000) + b"[" * 200_000,
        "nothing": b"",
    }


@pytest.mark.parametrize("name", sorted(answers("")))
def test_no_answer_of_a_child_runs_code_in_its_reader(name: str, tmp_path: Path) -> None:
    place = tmp_path / "made"
    found = run_sandboxed(send_raw, answers(str(place))[name], returns=FaceInput, seconds=20)
    assert isinstance(found, WorkerFailure)
    assert found.reason == "crashed"
    assert not place.exists()


def test_bytes_that_are_a_pickle_stay_bytes(tmp_path: Path) -> None:
    bomb = pickle.dumps(Exploit(str(tmp_path / "made")))
    assert run_sandboxed(bytes, bomb, returns=bytes) == bomb
    with pytest.raises(MalformedAnswerError):
        decode_value(read_answer(reader(framed({"bytes": 0}, [bomb]))), np.ndarray)
    assert not (tmp_path / "made").exists()


def reader(data: bytes) -> Any:
    view = memoryview(data)

    def read(length: int) -> bytes:
        nonlocal view
        taken, view = bytes(view[:length]), view[length:]
        return taken

    return read


def _unpickling(path: Path) -> list[str]:
    """The calls in a file that may run what they read."""
    names = {
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "joblib.load",
        "marshal.loads",
        "dill.loads",
        "cloudpickle.loads",
    }
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.func) for call in found if ast.unparse(call.func) in names and not _is_plain(call)
    ]


def _is_plain(call: ast.Call) -> bool:
    """True for `torch.load(..., weights_only=True)`, which builds tensors and nothing else."""
    return any(
        option.arg == "weights_only" and ast.unparse(option.value) == "True" for option in call.keywords
    )


def test_the_product_unpickles_only_what_it_pickled_itself() -> None:
    places = {}
    for folder in ("diffbfr", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            if calls := _unpickling(path):
                places[path.relative_to(ROOT).as_posix()] = calls
    # the child reads the questions of its parent
    assert places == {"pipelines/sources/sandbox.py": ["pickle.loads"]}
