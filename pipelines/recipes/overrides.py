"""Changes to a recipe by `path=value`, from the command line and from a file, through one strictly typed
way.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar, cast

from diffbfr.degradation import PRESETS, DegradationSpec
from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.recipes.presets import RECIPES
from pipelines.recipes.recipe import Recipe

T = TypeVar("T")

_FIXED = ("name",)
_PIPELINE = "data.degradation.before"


def load(name: str, config_file: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its name, changed by a YAML, TOML or JSON file, then by `path=value` strings; the last word
    counts.

    In a file, paths may be nested or dotted; on the command line a tuple is a comma list and `none` is None.
    """
    if name not in RECIPES:
        raise UsageError(
            f"no recipe {name!r}; {_nearest(name, list(RECIPES))}expected one of {', '.join(RECIPES)}"
        )
    changes = dict(_read(config_file)) if config_file else {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise UsageError(
                f"--set {override} has no value; expected path=value, such as data.variants=2; write it so"
            )
        changes[path.strip()] = value.strip()
    return change(RECIPES[name](), changes)


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the values at dotted paths replaced, all at once, each checked against its field's
    type.
    """
    known = dict(_paths(recipe))
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        if path not in known:
            inside = [other for other in known if other.startswith(f"{path}.")]
            if inside:
                raise UsageError(
                    f"{path} is a group of settings; expected one in it, such as {inside[0]}; set that"
                )
            raise UsageError(
                f"no setting {path!r}; {_nearest(path, list(known))}expected a path of the recipe, such as "
                "data.variants"
            )
        *groups, leaf = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = _typed(path, known[path], value)
    return _rebuild(recipe, tree)


def _rebuild(value: T, tree: Mapping[str, Any]) -> T:
    """Replace from the leaves up, so that every check sees all changes at once; a preset of Eq. 13 brings
    its ranges with it.
    """
    if isinstance(value, DegradationSpec) and "preset" in tree:
        value = cast(T, _preset(tree["preset"]))
    made = {
        name: _rebuild(getattr(value, name), new) if isinstance(new, dict) else new
        for name, new in tree.items()
    }
    return dataclasses.replace(value, **made)  # type: ignore[type-var]


def _preset(name: str) -> DegradationSpec:
    if name not in PRESETS:
        raise UsageError(
            f"no degradation preset {name!r}; {_nearest(name, list(PRESETS))}expected one of "
            f"{', '.join(PRESETS)}; choose one"
        )
    return PRESETS[name]


def _paths(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable path with its type."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        path, child = f"{prefix}{field.name}", getattr(value, field.name)
        if dataclasses.is_dataclass(child):
            yield from _paths(child, f"{path}.")
        elif path not in _FIXED:
            yield path, hints[field.name]


def _typed(path: str, hint: Any, value: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if path == _PIPELINE and value:
        value = _pipeline(value)
    if isinstance(value, str):
        value = _from_text(hint, value)
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        raise UsageError(
            f"{path}={value} does not fit: {error.errors()[0]['msg']}; expected {_name(hint)}; correct it"
        ) from error


def _from_text(hint: Any, text: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    if any(typing.get_origin(option) is tuple for option in options):
        return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    return text


def _pipeline(value: Any) -> str:
    """The albumentations pipeline of `data.degradation.before`: a YAML or JSON file of it, or its
    transforms written in the settings.
    """
    from diffbfr.degradation.pre_augment import describe_pipeline

    return describe_pipeline(_parse(value) if isinstance(value, str) else value)


def _name(hint: Any) -> str:
    """A type as a person would write it."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return (
        "none"
        if hint is type(None)
        else hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint)
    )


def _nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean X? ` for the most similar name, also for the same last part in another group."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        leaf = word.rpartition(".")[2]
        close = [path for path in known if path.rpartition(".")[2] == leaf]
    return f"did you mean {close[0]}? " if close else ""


def _read(config_file: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value for every setting in a file."""
    values = _parse(config_file)
    if not isinstance(values, dict):
        raise UsageError(
            f"{config_file} holds a {type(values).__name__}; "
            "expected settings by name, such as data: {variants: 2}; correct it"
        )
    yield from _flat(values)


def _parse(config_file: str) -> Any:
    """What a YAML, TOML or JSON file holds."""
    try:
        data = storage.read_bytes(config_file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(
            f"no configuration file at {config_file}; expected YAML, TOML or JSON; correct --config"
        ) from error
    suffix = PurePosixPath(config_file).suffix.lower()
    if suffix not in _PARSERS:
        raise UsageError(f"{config_file} ends with {suffix!r}; expected .yaml, .toml or .json; rename it")
    try:
        return _PARSERS[suffix](data.decode())
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{config_file} cannot be parsed ({reason}); expected {suffix[1:].upper()}; correct it"
        ) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    ".yaml": _yaml,
    ".yml": _yaml,
    ".toml": tomllib.loads,
    ".json": json.loads,
}
