"""What commands write to standard output: short tables for people, one JSON object for machines."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def say(text: str) -> None:
    """Write a line, or several."""
    typer.echo(text)


def say_json(value: Any) -> None:
    """Write a value as one JSON object; dataclasses become objects."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=_plain))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be, two spaces apart; numbers stand right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(column[i]) for column in [list(head), *cells]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if far else cell.ljust(width)
            for cell, width, far in zip(row, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), *map(line, cells)])


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
