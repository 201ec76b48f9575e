"""What the pages of `docs/` say is so: links, places, settings, variables, messages, and the generated pages."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from pipelines.recipes.overrides import load
from pipelines.recipes.presets import paper
from tests.contracts.test_imports import FLOORS
from tests.docs.pages import PAGES, ROOT, code_spans, name_of

SOURCES = sorted(path for package in ("diffbfr", "pipelines") for path in (ROOT / package).rglob("*.py"))
PLACE = re.compile(r"((?:diffbfr|pipelines|tests)/[\w/]+\.py)(?:: ([\w.]+))?")
SETTING = re.compile(
    r"(?:(?:data|irm1|irm2|tem|sampling|column|evaluate|restore|cluster|tracking)(?:\.[a-z_0-9]+)+|init)(=.*)?"
)
FILES = (".json", ".safetensors", ".md", ".py", ".html", ".parquet")
VARIABLE = re.compile(r"(?:DIFFBFR|AWS|RAY|MLFLOW|OMP|OPENCV|GIT|NO)_[A-Za-z0-9_]+")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_the_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_figure_has_its_command_its_machine_and_its_commit() -> None:
    entries = yaml.safe_load((ROOT / "docs" / "results.yaml").read_text())
    assert len({entry["id"] for entry in entries}) == len(entries)
    for entry in entries:
        assert entry["measured"]
        assert re.fullmatch(r"[0-9a-f]{8,40}", entry["commit"]), entry["id"]
        assert "command" in entry or entry["columns"][0] == "command", entry["id"]
        if "picture" in entry:
            assert (ROOT / "docs" / entry["picture"]).is_file()
        if "columns" in entry or "picture" not in entry:
            assert all(len(row) == len(entry["columns"]) for row in entry["rows"]), entry["id"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{target} is not there"
        if anchor:
            assert anchor in headings(file), f"{target}: no such heading"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_place_in_the_code_is_there(page: Path) -> None:
    for span in code_spans(page):
        place = PLACE.fullmatch(span)
        if place is None:
            continue
        file, symbol = ROOT / place[1], place[2]
        assert file.is_file(), span
        assert symbol is None or symbol in defined(file), span


@functools.cache
def defined(file: Path) -> set[str]:
    """The functions, classes, methods and fields of a module, by dotted name."""
    names = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign):
                names.add(prefix + ast.unparse(node.target))
            elif isinstance(node, ast.Assign):
                names.update(prefix + ast.unparse(target) for target in node.targets)

    visit(ast.parse(file.read_text()).body, "")
    return names


def test_every_term_of_the_glossary_has_a_place() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| term")]
    assert len(rows) >= 40
    assert [row for row in rows if not PLACE.search(row)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_exists(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blur.yaml").write_text("[{MotionBlur: {blur_limit: 9, p: 0.3}}]")
    for span in code_spans(page):
        setting = SETTING.fullmatch(span.removeprefix("--set ").replace("STAGE.", "irm1."))
        if setting is None or setting[0].endswith(FILES):
            continue
        if setting[1]:
            assert load("paper", None, [setting[0]]) is not None
        else:
            attrgetter(setting[0])(paper())


def test_the_pipeline_before_eq_13_is_one_that_albumentations_takes(tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    page = (ROOT / "docs" / "datasets.md").read_text()
    (pipeline,) = re.findall(r"`(\[\{MotionBlur.*?\}\])`", page)
    (tmp_path / "blur.yaml").write_text(pipeline)
    changed = load("paper", None, [f"data.degradation.before={tmp_path / 'blur.yaml'}"])
    assert changed.data.degradation.before


def test_the_rooms_of_the_architecture_are_those_of_the_import_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", page, re.MULTILINE)
    found: dict[int, set[str]] = {}
    for number, room in rows:
        found.setdefault(int(number), set()).add(room)
    assert found == dict(enumerate(FLOORS))


@functools.cache
def strings() -> tuple[str, ...]:
    """The string constants of all modules, and their messages with every inserted value as one NUL."""
    return tuple(text for file in SOURCES for text in _strings(file))


def _strings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            yield "".join(map(str, parts))


def test_every_environment_variable_is_documented() -> None:
    found = {text for text in strings() if VARIABLE.fullmatch(text)}
    read = re.compile(r"environ(?:\.get\(|\[)\"(\w+)\"")
    found |= {name for file in SOURCES for name in read.findall(file.read_text())}
    assert {"DIFFBFR_CACHE", "RANK", "AWS_ENDPOINT_URL"} <= found
    documented = set(re.findall(r"`([A-Z][A-Za-z0-9_]+)`", OPERATIONS))
    assert sorted(found - documented) == []
    ours = {name for name in documented if name.startswith("DIFFBFR_")}
    assert sorted(ours - found) == []


def test_every_message_of_the_troubleshooting_is_in_the_source() -> None:
    section = OPERATIONS.partition("## Troubleshooting")[2]
    quoted = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    assert len(quoted) >= 20
    messages = "\n".join(strings())
    messages = re.sub(r"%[sd]", "\0", messages)
    missing = []
    for line in quoted:
        pattern = "[^\n]*".join(re.escape(part) for part in line.split("..."))
        if not re.search(pattern, messages):
            missing.append(line)
    assert missing == []
