"""Density: no comprehension holds another one, and no comprehension has two `for`s."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("diffbfr", "pipelines") for path in (ROOT / package).rglob("*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def nested_comprehensions(code: str) -> Iterator[int]:
    """The lines where one begins."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, COMPREHENSIONS):
            inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
            if len(inner) > 1 or len(node.generators) > 1:
                yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_comprehension_is_nested(path: Path) -> None:
    lines = list(nested_comprehensions(path.read_text()))
    assert lines == [], f"{path}: lines {lines}; write a loop, or give the inner one a name"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("[x for x in y]", []),
        ("[[x for x in z] for z in y]", [1]),
        ("any(x for x in\n [z for z in y])", [1]),
        ("{x: y for y in z for x in y}", [1]),
        ("a = [x for x in y]\nb = [x for x in a]", []),
    ],
)
def test_the_rule_finds_what_it_names(code: str, lines: list[int]) -> None:
    assert list(nested_comprehensions(code)) == lines
