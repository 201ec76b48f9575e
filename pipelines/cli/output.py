"""What commands write: short tables for people, one JSON object for programs, nothing that steers a terminal.

Names of photos, members and models, and messages with them, come from others. `diffbfr.text.shown` is the one
rule for them. Every line goes through it here, and so does whatever else the process writes, such as a
warning of a library or a traceback, because `guard_streams` replaces both streams.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

import typer

from diffbfr.text import CONTROLS, format_columns, shown, without_secrets

_KEPT: Final = "\n\t"


class GuardedStream(io.TextIOBase):
    """A text stream that writes what `shown` leaves; line breaks and tabs stay.

    `terminal` is the stream behind it, for a progress display whose escapes are its own. There is no
    `buffer`: bytes would get past.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.terminal.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.terminal.errors

    def write(self, text: str) -> int:
        """Write a text; a character that the terminal's encoding lacks is written as its escape."""
        safe = shown(text, keep=_KEPT)
        self.terminal.write(safe.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self.terminal.flush()

    def isatty(self) -> bool:
        return not self.terminal.closed and self.terminal.isatty()

    def fileno(self) -> int:
        return self.terminal.fileno()

    def writable(self) -> bool:
        return True


def guard_streams() -> None:
    """Let all that this process prints from now on pass `shown`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))


def say(*lines: str) -> None:
    """Write lines to standard output; a line break inside of one is written as its escape."""
    for line in lines:
        typer.echo(shown(line, keep="\t"))


def say_block(text: str) -> None:
    """Write a text of several lines that this program laid out."""
    say(*text.split("\n"))


def say_error(line: str) -> None:
    """Write one line to standard error."""
    typer.echo(shown(line), err=True)


def say_json(value: Any) -> None:
    """Write a value as one JSON object without passwords; dataclasses become objects.

    Controls are written as JSON escapes, so a program reads the names as they are.
    """
    plain = json.loads(json.dumps(value, default=_plain))
    text = json.dumps(_without_secrets(plain), indent=1, ensure_ascii=False)
    typer.echo(CONTROLS.sub(lambda found: _json_escape(found[0]), text))


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


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {without_secrets(name): _without_secrets(item) for name, item in value.items()}
    return value


def _json_escape(character: str) -> str:
    return character if character == "\n" else json.dumps(character)[1:-1]
