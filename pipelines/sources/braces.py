"""Braces as a shell expands them: `{00000..00099}.tar` and `{train,val}.tar`, the names of WebDataset shards.

A quoted argument reaches the program with its braces, and an `s3://` place is never expanded by a shell.
"""

import re
from itertools import product
from typing import Final

from diffbfr.errors import UsageError

MAX_NAMES: Final = 100_000

_RANGE: Final = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?|([a-zA-Z])\.\.([a-zA-Z])")


def expand_braces(text: str) -> list[str]:
    """Return the texts that the braces of a text stand for, in order; the text itself if it has none.

    A range with a leading zero keeps its width. Braces without a comma or a range stay as they are.
    UsageError for more than 100,000 texts.
    """
    start = text.find("{")
    while start >= 0:
        end = _closing(text, start)
        options = _options(text[start + 1 : end]) if end > 0 else []
        if options:
            rests = expand_braces(text[end + 1 :])
            if len(options) * len(rests) > MAX_NAMES:
                raise _too_many(text)
            return [text[:start] + "".join(pair) for pair in product(options, rests)]
        start = text.find("{", start + 1)
    return [text]


def _options(inside: str) -> list[str]:
    """Return what a pair of braces stands for; nothing if it is plain text."""
    parts = _split(inside)
    if len(parts) > 1:
        options: list[str] = []
        for part in parts:
            options += expand_braces(part)
        return options
    match = _RANGE.fullmatch(inside)
    if match is None:
        return []
    first, last, step, first_letter, last_letter = match.groups()
    if first_letter:
        return [chr(code) for code in _steps(ord(first_letter), ord(last_letter), 1)]
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = _steps(int(first), int(last), abs(int(step or 1)) or 1)
    if len(numbers) > MAX_NAMES:
        raise _too_many(f"{{{inside}}}")
    return [f"{number:0{width}d}" for number in numbers]


def _steps(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _closing(text: str, start: int) -> int:
    """Return where the brace at `start` is closed; -1 if it is not."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return at
    return -1


def _split(text: str) -> list[str]:
    """Split a text at the commas that are in no braces of their own."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _too_many(text: str) -> UsageError:
    return UsageError(
        f"{text} names more than {MAX_NAMES} archives; expected fewer; write a wildcard such as *.tar"
    )
