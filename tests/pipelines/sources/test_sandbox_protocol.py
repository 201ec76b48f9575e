"""What a sandboxed process sends is rebuilt as it was, or is malformed; no header makes the reader run or hold
what did not come.
"""

import io
import json
import pickle
import struct
from typing import TypeVar

import numpy as np
import pytest

from pipelines.sources.sandbox_protocol import (
    MAX_HEADER_BYTES,
    MalformedAnswerError,
    decode_error,
    decode_value,
    encode_answer,
    read_answer,
)
from tests.pipelines.poison import Values

T = TypeVar("T")


def _there_and_back(value: T) -> T:
    answer = read_answer(io.BytesIO(b"".join(encode_answer("done", value))).read)
    return decode_value(answer, type(value))


def test_values_of_every_form_come_back_as_they_were() -> None:
    assert _there_and_back(Values("a\udcff", None, (1.5, -0.0), (b"", b"12"))) == Values(
        "a\udcff", None, (1.5, -0.0), (b"", b"12")
    )
    for value in ({"a": [1, True, None]}, ("x", (b"y", 2**80)), float("inf"), b"", []):
        found = _there_and_back(value)
        assert found == value
        assert type(found) is type(value)
    for array in (np.arange(6, dtype="<u2").reshape(2, 3), np.zeros((0, 3), np.float32), np.array(True)):
        found = _there_and_back(array)
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("value", "returns", "message"),
    [
        (1, str, "it is of the type int; expected str"),
        (True, int, "it is of the type bool; expected int"),
        ({"text": "a"}, Values, "it is no Values"),
        (Values(3, None, (), ()), Values, "it is no Values"),  # type: ignore[arg-type]
        (Values("a", None, (), (b"", "b")), Values, "it is no Values"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_type_is_malformed(value: object, returns: type, message: str) -> None:
    answer = read_answer(io.BytesIO(b"".join(encode_answer("done", value))).read)
    with pytest.raises(MalformedAnswerError, match=message):
        decode_value(answer, returns)


def test_what_cannot_leave_is_refused_where_it_is_sent() -> None:
    for value in (object(), {1: 2}, np.array([None]), {"set": {1}}):
        with pytest.raises(TypeError, match="cannot leave the sandbox"):
            encode_answer("done", value)
    with pytest.raises(ValueError, match="an answer has"):
        encode_answer("done", "a" * (MAX_HEADER_BYTES + 1))


def _answer(header: object, *blocks: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + b"".join(blocks)


def _done(value: object, *lengths: object, kind: object = "done") -> bytes:
    return _answer({"kind": kind, "value": value, "blocks": list(lengths)})


MALFORMED = {
    "garbage": b"garbage, and more of it",
    "a huge header": struct.pack("<I", 2**32 - 1),
    "no JSON": _answer(b"{"),
    "no UTF-8": _answer(b"\xff\xfe"),
    "deep JSON": _answer(b"[" * 100_000),
    "a deep value": _answer(
        b'{"kind": "done", "blocks": [], "value": ' + b'{"list": [' * 300 + b"]}" * 300 + b"}"
    ),
    "a list": _answer([]),
    "another field": _answer({"kind": "done", "value": 1, "blocks": [], "code": ""}),
    "no kind": _done(1, kind="gone"),
    "no text as kind": _done(1, kind=["done"]),
    "a negative length": _done(1, -1),
    "a length that is no number": _done(1, "8"),
    "a length that is a boolean": _done(1, True),
    "a huge block": _done({"bytes": 0}, 2**62),
    "many blocks": _done(1, *([0] * 70_000)),
    "a block that was not sent": _done({"bytes": 1}, 0),
    "a block before the first": _done({"bytes": -1}, 0),
    "an unknown tag": _done({"object": "os.system"}),
    "two tags": _done({"list": [], "tuple": []}),
    "a bare list": _done([1]),
    "an array of objects": _done({"array": 0, "dtype": "|O", "shape": [0]}, 0),
    "an array of records": _done({"array": 0, "dtype": "i4,i4", "shape": [0]}, 0),
    "an array of no type": _done({"array": 0, "dtype": "os", "shape": [0]}, 0),
    "an array that is too long": _done({"array": 0, "dtype": "<f8", "shape": [2**62]}, 0),
    "an array of 99 axes": _done({"array": 0, "dtype": "|u1", "shape": [0] * 99}, 0),
    "an unknown error": _done({"dict": {"class": "SystemExit", "message": ""}}, kind="raised"),
    "an unknown reason": _done({"dict": {"reason_code": "odd", "message": ""}}, kind="raised"),
    "an error without a message": _done({"dict": {"class": "UsageError"}}, kind="raised"),
    "an error that is a number": _done(1, kind="raised"),
    "a bug without words": _done(1, kind="bug"),
    "a pickle": pickle.dumps(("done", 1)),
    "a pickle with its length": struct.pack("<Q", 40) + pickle.dumps(("done", "a" * 20)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_lies_is_malformed(name: str) -> None:
    with pytest.raises(MalformedAnswerError):
        _decode(MALFORMED[name])


def _decode(data: bytes) -> object:
    answer = read_answer(io.BytesIO(data).read)
    return decode_error(answer) if answer.kind == "raised" else decode_value(answer, str)


def test_lengths_are_checked_before_anything_is_read() -> None:
    for name in ("a huge header", "a huge block", "many blocks"):
        sizes: list[int] = []
        stream = io.BytesIO(MALFORMED[name])

        def read(length: int, stream: io.BytesIO = stream, sizes: list[int] = sizes) -> bytes:
            sizes.append(length)
            return stream.read(length)

        with pytest.raises(MalformedAnswerError):
            read_answer(read)
        assert max(sizes) <= MAX_HEADER_BYTES
