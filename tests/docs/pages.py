"""The pages of the repository as the tests of `tests/docs/` read them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for path in ROOT.glob("*/*.md") if path.parent.name not in (".venv", "build", "dist")),
    ]
)
"""Every Markdown page: at the top, in `docs/`, and the README of each room."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_PROGRAMS = ("diffbfr", "make", "python")


def name_of(page: Path) -> str:
    """The page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for found, body in _FENCE.findall(page.read_text()) if found == language]


def code_spans(page: Path) -> list[str]:
    """The inline code outside fenced blocks, each on one line."""
    text = _FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in _CODE.findall(text)]


def shell_commands(page: Path) -> list[str]:
    """The commands of the `sh` blocks, without comments; `A && B` is two."""
    commands = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = " ".join(shlex.quote(word) for word in shlex.split(line, comments=True))
            commands += [part.strip() for part in words.split("'&&'") if part.strip()]
    return commands


def inline_commands(page: Path) -> list[str]:
    """The inline code that is a command with arguments."""
    spans = [span for span in code_spans(page) if span.split()[0] in _PROGRAMS and " " in span]
    return [span for span in spans if "..." not in span]
