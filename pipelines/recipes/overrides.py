"""Overrides of a recipe by `path=value`, from the command line and from a file, validated by pydantic."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from diffbfr.degradation import PRESETS, DegradationSpec
from diffbfr.documents import abridged
from diffbfr.errors import UsageError
from pipelines.execution.artifact_store import flatten
from pipelines.recipes.presets import RECIPES
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.settings_file import read_settings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_FIXED = ("name",)
_MAX_NAME = 200
_PRESET = "data.degradation.preset"
_PIPELINE = "data.degradation.before"
_CONDITION = "irm2.training.condition"
_IN_CHANNELS = "irm2.stage.unet.in_channels"


def load(name: str, config_file: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its name, changed by a YAML, TOML or JSON file and then by `path=value` strings.

    In a file, paths may be nested or dotted. On the command line a tuple is written as a comma list and None
    as `none`. UsageError for an unknown name, path or file, and for an unfit value.
    """
    if name not in RECIPES:
        raise UsageError(
            f"no recipe {abridged(name)}; {_nearest(name, list(RECIPES))}expected one of {', '.join(RECIPES)}"
        )
    return change(RECIPES[name](), read_changes(config_file, overrides))


def read_changes(config_file: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Path -> value of a file and of `path=value` strings, for `change`; UsageError for one without."""
    # settings from the command line override those of the file
    changes = dict(_read(config_file)) if config_file else {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise UsageError(
                f"--set {override} has no value; expected path=value, such as data.variants=2; write it so"
            )
        changes[path.strip()] = value.strip()
    return changes


def add_option(
    overrides: Sequence[str] | None, option: str, path: str, value: str | int | None
) -> tuple[str, ...]:
    """The `path=value` strings, and that of an option which sets the same path; None where it is not given.

    UsageError if a string gives the path another value: neither is preferred to the other in silence.
    """
    given = tuple(overrides or ())
    if value is None:
        return given
    for override in given:
        name, _, other = override.partition("=")
        if name.strip() == path and other.strip() != str(value).strip():
            raise UsageError(
                f"{option} {value} goes with no --set {path}={other}; expected one value of {path}; "
                "leave out one"
            )
    return (*given, f"{path}={value}")


def change(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the values at dotted paths replaced, validated as a whole against the fields' types.

    All values change at once, so that settings which only fit together can be changed together. UsageError
    names an unknown path or an unfit value. A preset of Eq. 13 also sets its ranges, and IRM-2's condition
    the number of its input channels.
    """
    if not changes:
        return recipe
    known = [path for path in flatten(recipe) if path not in _FIXED]
    values = dataclasses.asdict(recipe)
    if _PRESET in changes:
        values["data"]["degradation"] = dataclasses.asdict(_preset(changes[_PRESET]))
    for path, value in changes.items():
        _check_path(path, known)
        *groups, leaf = path.split(".")
        node = values
        for group in groups:
            node = node[group]
        node[leaf] = _parse_value(path, value)
    if _CONDITION in changes and _IN_CHANNELS not in changes:
        values["irm2"]["stage"]["unet"]["in_channels"] = 9 if changes[_CONDITION] == "both" else 6
    return _validate(values, changes)


def _validate(values: dict[str, Any], changes: Mapping[str, Any]) -> Recipe:
    from pydantic import ValidationError

    try:
        return _recipe_adapter().validate_python((values,))[0]
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UsageError):  # raised by a dataclass's own check
            raise cause from error
        # the location may go on inside a value: into a tuple, or into a branch of a union
        location = ".".join(map(str, first["loc"][1:]))
        path = next((path for path in changes if f"{location}.".startswith(f"{path}.")), location)
        expected = _describe_type(_type_of(path))
        value = _shown(changes.get(path))
        raise UsageError(
            f"{path}={value} does not fit: {first['msg']}; expected {expected}; correct it"
        ) from error


@cache
def _recipe_adapter() -> "TypeAdapter[tuple[Recipe]]":
    """The validator of a recipe; pydantic accepts a configuration for a tuple, but not for a dataclass."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(tuple[Recipe], config=ConfigDict(allow_inf_nan=False))


def _check_path(path: str, known: Sequence[str]) -> None:
    if path in known:
        return
    inside = [other for other in known if other.startswith(f"{path}.")]
    if inside:
        raise UsageError(f"{path} is a group of settings; expected one in it, such as {inside[0]}; set that")
    raise UsageError(
        f"no setting {abridged(path)}; {_nearest(path, known)}expected a path of the recipe, such as "
        "data.variants"
    )


def _preset(name: str) -> DegradationSpec:
    if name not in PRESETS:
        raise UsageError(
            f"no degradation preset {abridged(name)}; {_nearest(name, list(PRESETS))}expected one of "
            f"{', '.join(PRESETS)}; choose one"
        )
    return PRESETS[name]


def _type_of(path: str) -> Any:
    """The annotation of the field at a dotted path."""
    hint: Any = Recipe
    for name in path.split("."):
        hint = typing.get_type_hints(hint)[name]
    return hint


def _parse_value(path: str, value: Any) -> Any:
    """A value for pydantic: text may write a tuple as a comma list, and None as `none`."""
    if path == _PIPELINE and value:
        return _pipeline(value)
    if not isinstance(value, str):
        return value
    hint = _type_of(path)
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if type(None) in options and value.lower() in ("none", "null", ""):
        return None
    if any(typing.get_origin(option) is tuple for option in options):
        return [part.strip() for part in value.strip("()[] ").split(",") if part.strip()]
    return value


def _pipeline(value: Any) -> str:
    """The albumentations pipeline of `data.degradation.before`, from a YAML or JSON file or from settings."""
    from diffbfr.degradation.pre_augment import describe_pipeline

    return describe_pipeline(read_settings(value) if isinstance(value, str) else value)


def _shown(value: Any) -> str:
    return abridged(value)[1:-1] if isinstance(value, str) else abridged(value)


def _describe_type(hint: Any) -> str:
    """A type in the words of an error message."""
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint)


def _nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean X? ` with the most similar name, else one with the same last part; "" without any."""
    word = word[:_MAX_NAME]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        leaf = word.rpartition(".")[2]
        close = [path for path in known if path.rpartition(".")[2] == leaf]
    return f"did you mean {close[0]}? " if close else ""


def _read(config_file: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every setting in a file."""
    values = read_settings(config_file)
    if not isinstance(values, dict):
        raise UsageError(
            f"{config_file} holds a {type(values).__name__}; "
            "expected settings by name, such as data: {variants: 2}; correct it"
        )
    yield from _flat(values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
