"""Answers of a sandboxed process: a JSON header and raw blocks of bytes, which run no code in the reader.

An answer is four bytes (length of the header, little endian), the header, and the blocks that it announces:
`{"kind": ..., "value": ..., "blocks": [length, ...]}`. A value is null, a boolean, a number, a string, or an
object: `{"bytes": i}` (block i), `{"array": i, "dtype": ..., "shape": [...]}`, `{"list": [...]}`,
`{"tuple": [...]}`, `{"dict": {...}}` or, for a dataclass, `{"fields": {...}}`. The reader says which type it
expects and rebuilds that type field by field. Everything else is a `MalformedAnswerError`.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np

from diffbfr.errors import DiffBFRError, DivergedError, IncompleteError, QuarantineError, UsageError
from diffbfr.images import ImageRefused
from diffbfr.images.errors import REASONS
from diffbfr.spec import from_dict
from pipelines.sources.source import PhotoUnreadableError

T = TypeVar("T")
Kind: TypeAlias = Literal["ready", "done", "raised", "bug", "memory"]

MAX_HEADER_BYTES: Final = 4 << 20
MAX_BLOCKS: Final = 1 << 16
MAX_BLOCK_BYTES: Final = 1 << 30
"""Of all blocks together. The reader allocates what arrives, not what a header announces."""

_KINDS: Final = frozenset(get_args(Kind))
_LENGTH: Final = struct.Struct("<I")
_MAX_MESSAGE_CHARACTERS: Final = 20_000
_PLAIN: Final = frozenset((type(None), bool, int, float, str))
_ARRAY_KINDS: Final = "biuf"  # booleans, integers, floats: no objects, no text
_ERROR_CLASSES: Final[Mapping[str, type[Exception]]] = MappingProxyType(
    {
        cls.__name__: cls
        for cls in (
            DiffBFRError,
            UsageError,
            DivergedError,
            IncompleteError,
            QuarantineError,
            PhotoUnreadableError,
            ImportError,
        )
    }
)
"""The errors that the reader raises again, from their name and message."""


class MalformedAnswerError(Exception):
    """An answer does not follow the format, exceeds its bounds or is not of the expected type."""


@dataclass(frozen=True)
class Answer:
    """One answer whose form was checked; its value is decoded by `decode_value` or `decode_error`."""

    kind: Kind
    value: Any
    blocks: tuple[bytes, ...]


def encode_answer(kind: Kind, value: object = None) -> tuple[bytes, ...]:
    """Return the pieces of an answer in the order in which they are sent; TypeError if it has no form."""
    blocks: list[bytes] = []
    packed = _pack(value, blocks)
    lengths = [len(block) for block in blocks]
    header = json.dumps({"kind": kind, "value": packed, "blocks": lengths}).encode()
    if len(header) > MAX_HEADER_BYTES or len(blocks) > MAX_BLOCKS or sum(lengths) > MAX_BLOCK_BYTES:
        raise ValueError(f"an answer has {len(header)} + {sum(lengths)} bytes in {len(blocks)} blocks")
    return (_LENGTH.pack(len(header)), header, *blocks)


def encode_error(error: Exception) -> tuple[bytes, ...]:
    """Return the pieces of an answer that names an error by its message and nearest allowed class."""
    described = {"message": str(error)[:_MAX_MESSAGE_CHARACTERS]}
    if isinstance(error, ImageRefused):
        return encode_answer("raised", {**described, "reason_code": error.reason_code})
    name = next(cls.__name__ for cls in type(error).__mro__ if _ERROR_CLASSES.get(cls.__name__) is cls)
    return encode_answer("raised", {**described, "class": name})


def send_answer(stream: IO[bytes], pieces: Sequence[bytes]) -> None:
    """Write the pieces of one answer and flush."""
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def read_answer(read: Callable[[int], bytes]) -> Answer:
    """Read one answer; `read(n)` returns exactly n bytes. Lengths are checked before anything is read."""
    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise MalformedAnswerError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError("its header is no JSON") from error
    if not isinstance(header, dict) or header.keys() != {"kind", "value", "blocks"}:
        raise MalformedAnswerError("its header has other fields than kind, value and blocks")
    kind, lengths = header["kind"], header["blocks"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise MalformedAnswerError("it is of no known kind")
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise MalformedAnswerError("the lengths of its blocks are no list of numbers")
    if len(lengths) > MAX_BLOCKS or sum(lengths) > MAX_BLOCK_BYTES:
        raise MalformedAnswerError(f"it announces {len(lengths)} blocks of {sum(lengths)} bytes")
    return Answer(cast(Kind, kind), header["value"], tuple(read(length) for length in lengths))


def decode_value(answer: Answer, returns: type[T]) -> T:
    """Rebuild the value of an answer as a `returns`: a dataclass, field by field, or a plain type."""
    try:
        plain = _plain(answer)
        if dataclasses.is_dataclass(returns):
            return cast(T, from_dict(returns, plain))
    # whatever a constructor raises on values of the child is the child's fault
    except Exception as error:
        if isinstance(error, MalformedAnswerError):
            raise
        raise MalformedAnswerError(f"it is no {returns.__name__} ({type(error).__name__})") from error
    if not isinstance(plain, returns) or (isinstance(plain, bool) and returns is not bool):
        raise MalformedAnswerError(f"it is of the type {type(plain).__name__}; expected {returns.__name__}")
    return plain


def decode_error(answer: Answer) -> Exception:
    """Rebuild the error that an answer names; only those of the allow-list exist."""
    described = _plain(answer)
    message = described.get("message") if isinstance(described, dict) else None
    if not isinstance(message, str) or len(described) != 2:
        raise MalformedAnswerError("it describes no error")
    reason, name = described.get("reason_code"), described.get("class")
    if reason in REASONS:
        return ImageRefused(reason, message)
    if not isinstance(name, str) or name not in _ERROR_CLASSES:
        raise MalformedAnswerError("it names an unknown error")
    return _ERROR_CLASSES[name](message)


def _pack(value: Any, blocks: list[bytes]) -> Any:
    """Return the value as JSON with tags; bytes go to `blocks`."""
    if type(value) in _PLAIN or isinstance(value, float | str):
        return value
    if isinstance(value, bytes):
        blocks.append(value)
        return {"bytes": len(blocks) - 1}
    if isinstance(value, np.ndarray) and value.dtype.kind in _ARRAY_KINDS:
        blocks.append(value.tobytes())
        return {"array": len(blocks) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        tag = "list" if isinstance(value, list) else "tuple"
        return {tag: [_pack(item, blocks) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(item, blocks) for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {"fields": {field.name: _pack(getattr(value, field.name), blocks) for field in fields}}
    raise TypeError(f"a {type(value).__name__} cannot leave the sandbox")


def _plain(answer: Answer) -> Any:
    try:
        return _unpack(answer.value, answer.blocks)
    except RecursionError as error:
        raise MalformedAnswerError("its value is nested too deeply") from error
    except (ValueError, OverflowError) as error:  # what NumPy says of a shape that no array can have
        raise MalformedAnswerError("its value cannot be rebuilt") from error


def _unpack(node: Any, blocks: Sequence[bytes]) -> Any:
    """Invert `_pack`; a dataclass comes back as a dict of its fields."""
    if type(node) in _PLAIN:
        return node
    if isinstance(node, dict):
        if node.keys() == {"array", "dtype", "shape"}:
            return _array(_block(node["array"], blocks), node["dtype"], node["shape"])
        if len(node) == 1:
            ((tag, content),) = node.items()
            if tag == "bytes":
                return _block(content, blocks)
            if tag in ("list", "tuple") and isinstance(content, list):
                items = [_unpack(item, blocks) for item in content]
                return items if tag == "list" else tuple(items)
            if tag in ("dict", "fields") and isinstance(content, dict):
                return {key: _unpack(item, blocks) for key, item in content.items()}
    raise MalformedAnswerError("its value has an unknown form")


def _block(index: Any, blocks: Sequence[bytes]) -> bytes:
    if type(index) is not int or not 0 <= index < len(blocks):
        raise MalformedAnswerError("its value names a block that was not sent")
    return blocks[index]


def _array(block: bytes, dtype: Any, shape: Any) -> Any:
    """Return a block as an array, if its type is numeric and its length is that of the shape."""
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or kind.kind not in _ARRAY_KINDS or kind.subdtype is not None:
        raise MalformedAnswerError("it has an array of no numeric type")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise MalformedAnswerError("it has an array without a shape")
    if len(shape) > 32 or math.prod(shape) * kind.itemsize != len(block):
        raise MalformedAnswerError("it has an array whose length is not that of its shape")
    return np.frombuffer(block, kind).reshape(shape)
