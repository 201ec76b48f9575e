"""What checks the shapes and types of diffbfr in the tests: beartype, with whole numbers welcome where a
float is wanted (PEP 484).
"""

from typing import Any, Self

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Any) -> Any:
    """Check a function's arguments and result; `Self` means nothing to a checker that sees one method at a
    time, so those pass.
    """
    return function if Self in getattr(function, "__annotations__", {}).values() else _beartype(function)
