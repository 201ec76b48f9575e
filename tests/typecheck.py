"""What checks the shapes and types of diffbfr in the tests: beartype, with whole numbers welcome where a
float is wanted (PEP 484).
"""

import functools
import inspect
from collections.abc import Hashable
from typing import Any, Self, get_args, get_origin

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Any) -> Any:
    """Check a function's arguments and result; `Self` means nothing to a checker that sees one method at a
    time, so those pass.
    """
    if Self in getattr(function, "__annotations__", {}).values():
        return function
    try:
        return _made_once(_Signed(function))
    except TypeError:  # a default that has no hash
        return _beartype(function)


class _Signed:
    """A function that equals another of the same name and signature.

    jaxtyping hands over stand-ins that hold a signature and no code. Those of a nested function are made
    again whenever the outer function is called, and compiling a check takes milliseconds.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        signature = inspect.signature(function)
        parameters = (
            (it.name, it.kind, it.default, _meaning(it.annotation)) for it in signature.parameters.values()
        )
        returned = _meaning(signature.return_annotation)
        self._key = (function.__module__, function.__qualname__, *parameters, returned)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Signed) and self._key == other._key


def _meaning(annotation: Any) -> Hashable:
    """An annotation as what two of the same meaning have in common; jaxtyping makes a new class each time."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return annotation.dtype, annotation.array_type, annotation.dim_str
    parts = annotation if isinstance(annotation, list) else get_args(annotation)
    return (get_origin(annotation), *map(_meaning, parts)) if parts else annotation


@functools.lru_cache(maxsize=4096)
def _made_once(signed: _Signed) -> Any:
    return _beartype(signed.function)
