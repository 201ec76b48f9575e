"""A step's code digests change when the code it reaches changes, and only then."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.execution.fingerprint import code_fingerprint

STEP = "pipelines.steps.make"
TREE = {
    "diffbfr/__init__.py": '__version__ = "1"\n',
    "diffbfr/core/__init__.py": "from diffbfr.core.maths import double\n",
    "diffbfr/core/maths.py": '"""Doubles."""\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n    return 2 * x  # exactly\n',
    "diffbfr/lazy.py": "LIMIT = 3\n",
    "diffbfr/behind_a_door.py": "SIZE = 1\n",
    "diffbfr/for_types.py": "class Shape: ...\n",
    "diffbfr/other.py": "UNUSED = 1\n",
    "pipelines/__init__.py": "",
    "pipelines/door.py": "import diffbfr.behind_a_door\n",
    "pipelines/steps/__init__.py": "",
    "pipelines/steps/make.py": (
        "import json\nfrom typing import TYPE_CHECKING\nfrom diffbfr import core\nfrom pipelines import "
        "door\n"
        "if TYPE_CHECKING:\n    from diffbfr.for_types import Shape\n\n"
        "def make(task):\n    from diffbfr.lazy import LIMIT\n    return core.double(LIMIT)\n"
    ),
}
REACHED = ["diffbfr.behind_a_door", "diffbfr.core", "diffbfr.core.maths", "diffbfr.lazy", STEP]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path


def edit(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text()
    assert old in text
    (tree / name).write_text(text.replace(old, new))


def changed(tree: Path, name: str, old: str, new: str) -> list[str]:
    before = code_fingerprint([STEP], tree)
    edit(tree, name, old, new)
    after = code_fingerprint([STEP], tree)
    assert before.keys() == after.keys()
    return [module for module in before if before[module] != after[module]]


def test_the_closure_follows_every_import_and_counts_diffbfr_and_steps(tree: Path) -> None:
    assert list(code_fingerprint([STEP], tree)) == REACHED


def test_a_change_of_code_changes_that_module_alone(tree: Path) -> None:
    assert changed(tree, "diffbfr/core/maths.py", "2 * x", "x + x") == ["diffbfr.core.maths"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Doubles.", "Makes twice as much."),
        ("Twice x.", "The double of x."),
        ("  # exactly", ""),
        ("\n\n\ndef", "\n\n\n\n\ndef"),
        ('    """Twice x."""\n', ""),
        ("return 2 * x  # exactly\n", 'return 2 * x  # exactly\n"""After the function."""\n'),
    ],
    ids=[
        "module docstring",
        "function docstring",
        "comment",
        "layout",
        "docstring removed",
        "attribute docstring",
    ],
)
def test_words_are_not_code(tree: Path, old: str, new: str) -> None:
    assert changed(tree, "diffbfr/core/maths.py", old, new) == []


def test_what_the_step_does_not_reach_does_not_count(tree: Path) -> None:
    assert changed(tree, "diffbfr/other.py", "1", "2") == []
    assert changed(tree, "diffbfr/for_types.py", "...", "side: int = 1") == []
    assert changed(tree, "pipelines/door.py", "import", "x = 1\nimport") == []
    assert changed(tree, "diffbfr/__init__.py", "1", "2") == []


@pytest.mark.parametrize(
    ("test", "reached"),
    [
        ("TYPE_CHECKING", False),
        ("typing.TYPE_CHECKING", False),
        ("not TYPE_CHECKING", True),
        ("TYPE_CHECKING or True", True),
    ],
)
def test_only_what_no_run_imports_is_left_out(tree: Path, test: str, reached: bool) -> None:
    edit(tree, "diffbfr/lazy.py", "LIMIT", f"if {test}:\n    import diffbfr.other\nLIMIT")
    assert ("diffbfr.other" in code_fingerprint([STEP], tree)) == reached
    edit(tree, "diffbfr/lazy.py", "\nLIMIT", "\nelse:\n    import diffbfr.for_types\nLIMIT")
    assert "diffbfr.for_types" in code_fingerprint([STEP], tree)


def test_a_new_import_adds_its_module(tree: Path) -> None:
    edit(tree, "diffbfr/lazy.py", "LIMIT", "import diffbfr.other\nLIMIT")
    assert list(code_fingerprint([STEP], tree)) == sorted([*REACHED, "diffbfr.other"])


def test_an_import_in_a_circle_ends(tree: Path) -> None:
    edit(tree, "diffbfr/core/maths.py", "Doubles.", 'Doubles."""\nimport pipelines.steps.make\n"""')
    assert list(code_fingerprint([STEP], tree)) == sorted([*REACHED, "pipelines.steps"])


def test_an_unknown_entry_is_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"pipelines\.steps\.fake"):
        code_fingerprint(["pipelines.steps.fake"], tree)


def test_no_module_is_imported() -> None:
    code = (
        "import sys; from pipelines.execution.fingerprint import code_fingerprint; found = "
        "code_fingerprint(['pipelines.steps.shard'])\n"
        "assert 'diffbfr.degradation.recipe' in found and 'diffbfr.synthetic.head' in found, sorted(found)\n"
        "assert not {'diffbfr.degradation', 'pipelines.steps.shard', 'numpy', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
