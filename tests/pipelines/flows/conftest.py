"""One real run for all that look at finished runs, and copies of it to damage."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.flows import train_cascade
from pipelines.recipes.recipe import Recipe
from tests.pipelines.flows.pocket import pocket
from tests.pipelines.tiny_dataset import make_photos

PROJECT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Place:
    """A finished run to edit: its root, its photos, the code that it runs, and the recipe."""

    root: Path
    photos: Path
    code: Path
    recipe: Recipe

    def output(self, step: str, pattern: str) -> Path:
        """One file of a step's artifact."""
        return next(iter(sorted(self.root.glob(f"artifacts/{step}/*/{pattern}"))))


def flip(file: Path) -> None:
    """Change one byte in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One real run from photos in a folder, in this process."""
    place = tmp_path_factory.mktemp("finished")

    def not_python(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name).is_file() and not name.endswith(".py")]

    for package in ("diffbfr", "pipelines"):
        shutil.copytree(PROJECT / package, place / "code" / package, ignore=not_python)
    photos = make_photos(place / "photos", count=24)
    recipe = pocket()
    recipe = replace(recipe, data=replace(recipe.data, faces=str(photos)))
    train_cascade.run(recipe, str(place / "root"))
    return Place(place / "root", photos, place / "code", recipe)


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy to edit, times and all; its registry still keeps its files where the run was."""
    shutil.copytree(finished.root, tmp_path / "root")
    shutil.copytree(finished.photos, tmp_path / "photos")
    recipe = replace(finished.recipe, data=replace(finished.recipe.data, faces=str(tmp_path / "photos")))
    return Place(tmp_path / "root", tmp_path / "photos", finished.code, recipe)
