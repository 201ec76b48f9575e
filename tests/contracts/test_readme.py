"""The README's commands are accepted by the command line, its recipes and settings exist, and its tree is
the repository's.
"""

import re
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.manifest import open_dataset
from pipelines.recipes.overrides import change, load
from pipelines.recipes.presets import paper
from tests.infra.test_infra import accept
from tests.pipelines.tiny_dataset import build, make_photos

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"`(diffbfr [^`]+)`", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[1] in ("models", "data"):  # groups: their own commands are parsed below them
        words = words[:3] if len(words) > 2 else words
        assert words[2] in (
            "list",
            "show",
            "holdout",
            "promote",
            "rollback",
            "lineage",
            "log",
            "fsck",
            "gc",
            "verify",
            "retry",
            "checksums",
        )
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


def test_the_settings_of_the_data_that_the_readme_names_exist(tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    (pipeline,) = re.findall(r"`(\[\{MotionBlur.*?\}\])`", README)
    (tmp_path / "blur.yaml").write_text(pipeline)
    settings = re.findall(r"`(data\.[\w.]+)(?:=([\w.]+))?`", README)
    assert len(settings) >= 6
    for path, value in settings:
        if value:
            changed = change(paper(), {path: str(tmp_path / value) if value == "blur.yaml" else value})
            assert changed != paper(), path
        else:
            assert attrgetter(path)(paper()) is not None


def test_the_example_of_the_readme_reads_a_dataset_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    build(make_photos(tmp_path / "photos", 20), tmp_path / "DATASET")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    dataset = open_dataset("DATASET")
    assert len(set(names["shown"])) == 8
    assert set(names["shown"]) <= set(dataset.keys("train"))
    assert len(names["state"]) < 1000
    batch = next(iter(names["resumed"]))
    assert [sample.position for sample in batch] == [8, 9]
    assert [picture.shape for picture in batch[0].value] == [(8, 8, 3), (8, 8, 3)]
