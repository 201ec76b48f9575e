"""The README's commands are accepted by the command line, its recipes and settings exist, and its tree is the repository's."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines.settings import load
from tests.infra.test_infra import accept

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`(diffbfr [^`]+)`", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[1] in ("models", "data"):  # groups: their own commands are parsed below them
        words = words[:3] if len(words) > 2 else words
        assert words[2] in ("list", "show", "promote", "rollback", "lineage", "log", "fsck", "gc", "verify", "replay", "hashes")
        return
    given = accept(words)
    if "recipe" in given:
        load(given["recipe"], None, tuple(given["overrides"] or ()))


def test_the_commands_of_the_first_screen_are_targets_of_make() -> None:
    targets = re.findall(r"^make (\w+) ", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_every_place_that_the_readme_names_is_there() -> None:
    places = re.findall(r"^(\w+)/ {2,}", README, re.MULTILINE) + re.findall(r"\]\(([\w/.]+\.\w+)\)", README)
    assert len(places) >= 8
    assert [place for place in places if not (ROOT / place).exists()] == []
