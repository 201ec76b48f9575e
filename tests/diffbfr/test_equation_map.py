"""The page that leads from the paper to the code: complete, and each place is there and names what it
stands for.
"""

import ast
import functools
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from diffbfr.degradation import PRESETS
from diffbfr.diffusion import VLB_WEIGHT
from diffbfr.metrics import identity, psnr, squeezenet, ssim
from diffbfr.metrics.info import MetricInfo
from diffbfr.stages import IRM1, IRM2, STAGE_NAMES, TEM, StageSpec
from diffbfr.training.config import TrainingConfig
from pipelines.recipes.presets import RECIPES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "diffbfr" / "README.md").read_text()
PLACE = re.compile(r"`([\w/]+\.py): ([\w.]+)`")
NUMBERED = {str(number) for number in range(1, 25)} - {"7"} | {"7a", "7b"}
"""Every number that the paper prints beside an equation, proofs included."""
TABLE_6 = [
    "Input size",
    "Output size",
    "conditional",
    "Time step",
    "Beta schedule",
    "Loss type",
    "Sampler time step started",
    "channel multiplier",
    "In channel",
    "Out channel",
    "Inner channel",
    "Attention resolutions",
]
METRICS = [
    value
    for module in (psnr, ssim, squeezenet, identity)
    for value in vars(module).values()
    if isinstance(value, MetricInfo)
]

NAMES = {
    "IRM1": IRM1,
    "IRM2": IRM2,
    "TEM": TEM,
    "STAGE_NAMES": STAGE_NAMES,
    "PAPER": RECIPES["paper"](),
    "PRESETS": PRESETS,
    "TrainingConfig": TrainingConfig,
    "VLB_WEIGHT": VLB_WEIGHT,
    "METRICS": METRICS,
}
"""What a default in the table of choices may speak of."""


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    lines = PAGE[PAGE.index(f"# {heading}\n") :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


PAPER, TABLE, CHOICES = (
    _rows("Where each part of the paper is"),
    _rows("Table 6"),
    _rows("Where the paper contradicts itself or is silent"),
)


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def _definition(file: str, symbol: str) -> ast.stmt:
    """Where a function, class, method or annotated field is defined; KeyError if it is nowhere."""
    body: list[ast.stmt] = _tree(file).body
    found: ast.stmt | None = None
    for name in symbol.split("."):
        found = next((node for node in body if _name(node) == name), None)
        if found is None:
            raise KeyError(f"{file} has no {symbol}")
        body = getattr(found, "body", [])
    assert found is not None
    return found


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _equations(text: str) -> set[str]:
    """Numbers after "Eq.": `Eq. 8, 9 and 11`, `Eq. 6, 7a`, `eq_17_and_19` in a test's name."""
    named = re.findall(r"Eq\. ((?:\d+[ab]?(?:, | and | or )?)+)", text) + re.findall(
        r"eq_((?:\d+_and_|\d+_)+)", text
    )
    return {number for names in named for number in re.findall(r"\d+[ab]?", names)}


def _places(cell: str) -> list[tuple[str, str]]:
    return PLACE.findall(cell)


def _every_place() -> Iterator[tuple[str, str]]:
    for row in [*PAPER, *TABLE, *CHOICES]:
        for cell in row:
            yield from _places(cell)


@pytest.mark.parametrize(("file", "symbol"), sorted(set(_every_place())))
def test_every_place_exists(file: str, symbol: str) -> None:
    _definition(file, symbol)


def test_every_numbered_equation_has_a_place() -> None:
    at_home = {number for row in PAPER if _places(row[2]) for number in _equations(row[0])}
    assert at_home == NUMBERED


def test_propositions_and_algorithm_have_a_place() -> None:
    for what in ("Proposition 1", "Proposition 2", "Proposition 3", "Proposition 4", "Algorithm 1"):
        assert [row for row in PAPER if what in f"{row[0]} {row[1]}" and _places(row[2])], what
    assert [row[1] for row in PAPER if row[0] == "Algorithm 1"] == [
        "whole",
        "x'_T, y'_{N_1}, y_{N_2}: the starts",
        "the three loops",
        "resize",
        "epsilon_theta",
    ]


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_place_names_what_it_stands_for(row: list[str]) -> None:
    """Each equation is named by one of its places; Algorithm 1 by all."""
    texts = [f"{ast.unparse(_definition(*place))} {place[1]}" for place in _places(row[2])]
    if row[0] == "Algorithm 1":
        assert all("Algorithm 1" in text or "Eq. 8, 9, 11" in text for text in texts)
    else:
        assert _equations(row[0]) <= {number for text in texts for number in _equations(text)}


def test_every_row_of_table_6_has_a_place() -> None:
    assert [row[0] for row in TABLE] == TABLE_6
    assert all(_places(row[4]) for row in TABLE)


def _value(stage: StageSpec, symbol: str) -> Any:
    owner = {"UNetSpec": stage.unet, "ScheduleSpec": stage.schedule, "StageSpec": stage}[
        symbol.partition(".")[0]
    ]
    value = getattr(owner, symbol.partition(".")[2])
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_place_of_a_row_of_table_6_holds_its_values(row: list[str]) -> None:
    for stage, cell in zip((IRM1, IRM2, TEM), row[1:4], strict=True):
        values = [_value(stage, symbol) for _, symbol in _places(row[4])]
        assert (values[0] if len(values) == 1 else values) == json.loads(cell)


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: row[0])
def test_every_choice_has_an_option_its_default_and_a_test(row: list[str]) -> None:
    ((file, symbol),) = _places(row[2])
    owner, _, field = symbol.partition(".")
    cls = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), owner)
    assert is_dataclass(cls)
    assert field in cls.__dataclass_fields__
    assert eval(row[3].strip("`"), NAMES) is True
    ((file, symbol),) = _places(row[4])
    assert file.startswith("tests/")
    assert symbol.startswith("test_")


def test_no_contradiction_is_left_out() -> None:
    assert len(METRICS) == 6
    assert [row[0] for row in CHOICES] == [
        "loss",
        "reverse variance",
        "clamp",
        "TEM's learned range",
        "TEM's output",
        "gray's probability",
        "gray's target",
        "IRM-2's condition",
        "resize",
        "range after resize",
        "t in training",
        "attention",
        "IRM-2's blocks",
        "optimiser",
        "weight decay",
        "average of the weights",
        "reference of a figure",
    ]
