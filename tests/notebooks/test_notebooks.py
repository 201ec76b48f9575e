"""The notebooks are what their sources say, and run from top to bottom, as a reader would run them."""

import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
BUILD: dict[str, Any] = runpy.run_path(str(FOLDER / "build.py"))
SOURCES: list[Path] = BUILD["sources"]()
TIMEOUT_S = 900


def test_there_are_six_and_the_room_names_each() -> None:
    assert len(SOURCES) == 6
    page = (FOLDER / "README.md").read_text()
    for source in SOURCES:
        assert f"[{source.stem}.ipynb]({source.stem}.ipynb)" in page


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_what_its_source_says_without_outputs(source: Path) -> None:
    assert source.with_suffix(".ipynb").read_text() == BUILD["render"](source), "python notebooks/build.py"
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert all(cell.get("outputs", []) == [] for cell in notebook.cells)
    assert [cell.cell_type for cell in notebook.cells[:2]] == ["markdown", "code"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_asserts_what_it_shows_and_calls_no_shell_and_no_network(source: Path) -> None:
    text = source.read_text()
    assert len(re.findall(r"^\s*assert ", text, re.MULTILINE)) >= 2
    assert not re.search(r"^\s*[!%](?!%)|get_ipython|os\.system|shell=True|https?://", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what the notebook leaves is removed with it
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in output["data"] for output in pictures) or source.stem.endswith("registry")


def test_check_finds_a_notebook_that_is_not_what_its_source_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (FOLDER / "build.py").read_text()
    (tmp_path / "build.py").write_text(text)
    (tmp_path / "1_one.py").write_text("# %% [markdown]\n# # One\n\n# %%\nassert 1 + 1 == 2\n")
    build: dict[str, Any] = runpy.run_path(str(tmp_path / "build.py"))
    assert build["main"](check=True) == 1
    assert build["main"](check=False) == 0
    assert build["main"](check=True) == 0
    cells = nbformat.read(tmp_path / "1_one.ipynb", as_version=4).cells
    assert [cell.source for cell in cells] == ["# One", "assert 1 + 1 == 2"]
