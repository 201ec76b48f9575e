"""JSON that others wrote, read within limits: bytes, depth, and digits of a number.

Without them a kilobyte of brackets ends a command with a traceback, and a number of 4,000 digits is a
setting.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from diffbfr.errors import UsageError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64
_MAX_VALUES: Final = 100_000
_LARGEST: Final = 2**63 - 1
_DIGITS: Final = len(str(_LARGEST))
_SHOWN_CHARACTERS: Final = 80


def decode_json(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON of at most `max_bytes` bytes (characters of a text); ValueError says what is wrong."""
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data):,} bytes, and at most {max_bytes:,} are read")
    try:
        value = json.loads(data, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from error
    _walk(value)
    return value


def check_values(value: Any) -> None:
    """ValueError if parsed settings are nested too deep, are too many, or hold a number of over 64 bits.

    A value that is used in several places counts in each of them, as it does for whoever walks the settings.
    """
    _walk(value, _MAX_VALUES)


def check_whole(of: str, field: str, value: int, least: int, most: int) -> None:
    """UsageError unless a whole number lies in a range, ends included: `of` has `field`."""
    if not least <= value <= most:
        raise UsageError(f"{of} has {field}={abridged(value)}; expected {least}..{most}")


def abridged(value: object) -> str:
    """A value in an error message: its representation, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _walk(value: Any, max_values: float = float("inf")) -> None:
    """Visit the values level by level, without recursion."""
    level, count = [value], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, int) and not -_LARGEST <= item <= _LARGEST:
                raise ValueError(f"it has a whole number of more than {_DIGITS} digits")
            if isinstance(item, Mapping):
                inner += item.values()
            elif isinstance(item, list | tuple | set):
                inner += item
            if count + len(inner) > max_values:
                raise ValueError(f"it unfolds to more than {max_values:,} values")
        level, count = inner, count + len(inner)
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS + 1:
        raise ValueError(f"it has a whole number of more than {_DIGITS} digits")
    return int(digits)
