"""What commands write to standard output: short tables for people, one JSON object for programs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from diffbfr.text import format_columns


def say(text: str) -> None:
    """Write one line or several."""
    typer.echo(text)


def say_json(value: Any) -> None:
    """Write a value as one JSON object; dataclasses become objects."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of aligned columns; those that hold only numbers are aligned to the right."""
    right = [_all_numbers(column) for column in zip(*rows, strict=True)]
    return format_columns([head, *(tuple(map(str, row)) for row in rows)], right)


def _all_numbers(column: Sequence[object]) -> bool:
    return all(isinstance(cell, int | float) for cell in column)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
