"""Frozen dataclasses to JSON and back, strictly: the format of the specification beside a stage's weights."""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any, Final, TypeVar, cast

from diffbfr.documents import abridged
from diffbfr.errors import UsageError

T = TypeVar("T")
LATER: Final[Mapping[str, Any]] = types.MappingProxyType({"later": True})
"""Metadata of a field that came after files were written: it is left out where it has its default.

So what does not use the field keeps its bytes and its digest.
"""


def to_dict(spec: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists); a `LATER` field only where it is used."""
    plain: dict[str, Any] = json.loads(json.dumps(_used(spec)))
    return plain


def digest(spec: Any) -> str:
    """Sha256 of a dataclass in canonical JSON, as hex."""
    return hashlib.sha256(
        json.dumps(to_dict(spec), sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build a dataclass from JSON values; an unknown or missing field is a UsageError that names it."""
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise UsageError(
            f"{where} is {type(values).__name__}; expected an object with the fields of {cls.__name__}"
        )
    hints = _type_hints(cast(Hashable, cls))
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise UsageError(
            f"{where} has the unknown field {abridged(unknown[0])}; expected {', '.join(fields)}"
        )
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where} has no field {name!r}; it was written by another version")
    return cls(**arguments)


def first_difference(expected: Any, found: Any, where: str = "") -> str | None:
    """The first field in which two specifications differ: `path: found X, expected Y`; None if equal."""
    left, right = (json.loads(json.dumps(dataclasses.asdict(spec))) for spec in (expected, found))
    return _difference(left, right, where)


def _used(value: Any) -> Any:
    """Dataclasses as dictionaries, without the `LATER` fields that have their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        used = {}
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if not (field.metadata.get("later") and inner == field.default):
                used[field.name] = _used(inner)
        return used
    if isinstance(value, Mapping):
        return {name: _used(inner) for name, inner in value.items()}
    return [_used(inner) for inner in value] if isinstance(value, list | tuple) else value


@functools.cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    """Resolve the annotations of a class once: it takes longer than to rebuild an instance."""
    return typing.get_type_hints(cls)


def _difference(expected: Any, found: Any, where: str) -> str | None:
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in dict.fromkeys([*expected, *found]):
            inner = _difference(expected.get(name), found.get(name), f"{where}.{name}" if where else name)
            if inner:
                return inner
        return None
    return None if expected == found else f"{where}: found {found}, expected {expected}"


def _value(hint: Any, value: Any, where: str) -> Any:
    if type(value) is hint and hint is not float:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} is {abridged(value)}; expected a list")
        inner = (
            [arguments[0]] * len(value)
            if len(arguments) == 2 and arguments[1] is Ellipsis
            else list(arguments)
        )
        if len(inner) != len(value):
            raise UsageError(f"{where} has {len(value)} entries; expected {len(inner)}")
        return tuple(_value(i, v, where) for i, v in zip(inner, value, strict=True))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UsageError(
                f"{where} is {abridged(value)}; expected one of {', '.join(map(str, arguments))}"
            )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise UsageError(f"{where} is {abridged(value)}; expected {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UsageError(f"{where} is {value}; expected a finite number")
    return value
