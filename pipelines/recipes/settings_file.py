"""Settings from a YAML, TOML or JSON file, read within limits.

Files of settings are passed on, so one may be written to cost minutes: maps of aliases that unfold to
billions of values, thousands of levels, numbers of thousands of digits.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from diffbfr.documents import MAX_DEPTH, check_values, decode_json
from diffbfr.errors import UsageError, one_line
from pipelines import storage

_MAX_BYTES: Final = 1 << 18
_MAX_SCALAR: Final = 1 << 16


def read_settings(config_file: str) -> Any:
    """The content of a YAML, TOML or JSON file of at most 256 KiB; UsageError if it breaks a limit."""
    suffix = PurePosixPath(config_file).suffix.lower()
    if suffix not in _PARSERS:
        raise UsageError(f"{config_file} ends with {suffix!r}; expected .yaml, .toml or .json; rename it")
    try:
        data = storage.read_range(config_file, 0, _MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(
            f"no configuration file at {config_file}; expected YAML, TOML or JSON; correct --config"
        ) from error
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        value = _PARSERS[suffix](data.decode())
        check_values(value)
    except ValueError as error:
        raise UsageError(
            f"{config_file} cannot be parsed ({one_line(error)}); expected {suffix[1:].upper()}; correct it"
        ) from error
    return value


def parse_yaml(text: str) -> Any:
    """Parse YAML without tags of Python; ValueError if it is none, or nested too deep."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        # the events come first: composing and constructing recurse, in C too
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_SCALAR:
                raise ValueError(f"it has a value of more than {_MAX_SCALAR:,} characters")
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
                raise ValueError("it merges maps with <<; write them out")
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _parse_toml(text: str) -> Any:
    # tomllib takes the square of the parts of a dotted key
    if any(part.count(".") > MAX_DEPTH for part in re.split(r"[=,{}\[\]\n]", text)):
        raise ValueError(f"it has a key of more than {MAX_DEPTH} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from error


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    ".yaml": lambda text: parse_yaml(text) or {},
    ".yml": lambda text: parse_yaml(text) or {},
    ".toml": _parse_toml,
    ".json": decode_json,
}
