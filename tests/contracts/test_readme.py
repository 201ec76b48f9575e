"""The README is short, and its tree, rooms and places are the repository's (`tests/docs/` runs its commands)."""

import re
from pathlib import Path

from tests.contracts.test_imports import FLOORS
from tests.docs.pages import blocks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_readme_is_shorter_than_120_lines() -> None:
    assert len(README.splitlines()) < 120


def test_the_commands_of_the_first_screen_are_targets_of_make() -> None:
    targets = re.findall(r"^make (\w+) ", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_every_place_that_the_readme_names_is_there() -> None:
    places = re.findall(r"^(\w+)/ {2,}", README, re.MULTILINE) + re.findall(r"\]\(([\w/.]+\.\w+)\)", README)
    assert len(places) >= 20
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_tree_names_every_folder_that_is_not_hidden() -> None:
    named = set(re.findall(r"^(\w+)/ {2,}", README, re.MULTILINE))
    kept = {"build", "dist", "shared"}  # made by commands, or beside the repository
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - kept
    assert {name for name in found if not name.endswith(".egg-info")} == named


def test_the_rooms_are_those_of_the_import_contract() -> None:
    rooms = [set(line.split()) for line in blocks(ROOT / "README.md", "")[-1].splitlines()]
    assert rooms == list(reversed(FLOORS))
