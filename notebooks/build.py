"""Write each `NAME.ipynb` from `NAME.py`, without outputs: `python notebooks/build.py [--check]`.

The sources are Python in cells: a line `# %%` begins code, `# %% [markdown]` begins text in comments, as
Jupytext, VS Code, Spyder and PyCharm read it. The same source gives the same bytes. With `--check` nothing
is written, and the exit code is 1 if a notebook differs from its source.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
MARK = "# %%"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The sources in the order in which they are read."""
    return sorted(path for path in FOLDER.glob("[0-9]*.py"))


def render(source: Path) -> str:
    """The notebook of a source as the text of its file."""
    cells = list(_cells(source.read_text()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02d}"
    notebook: NotebookNode = new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def _cells(text: str) -> Iterator[NotebookNode]:
    for part in f"\n{text}".split(f"\n{MARK}")[1:]:
        title, _, body = part.partition("\n")
        if title.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            yield new_markdown_cell("\n".join(lines))
        else:
            yield new_code_cell(body.strip())


def main(check: bool) -> int:
    stale = []
    for source in sources():
        target, text = source.with_suffix(".ipynb"), render(source)
        if not target.exists() or target.read_text() != text:
            stale.append(target.name)
            if not check:
                target.write_text(text)
    if check and stale:
        print(f"{', '.join(stale)}: not what python notebooks/build.py writes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
