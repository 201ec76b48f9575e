"""Imports point one way, each outside system has one door, and what is imported often costs little."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("diffbfr", "pipelines") for path in (ROOT / package).rglob("*.py"))

FLOORS = (
    {"diffbfr"},
    {"storage", "progress"},
    {"sources", "cluster", "execution", "packages"},
    {"dataset"},
    {"restoration", "recipes", "evaluation"},
    {"tracking", "report", "serving"},
    {"steps"},
    {"registry"},
    {"flows"},
    {"cli", "experiments"},
)
"""From the bottom up; a module imports from its own room and from the floors below."""

DOORS = {
    "albumentations": "diffbfr/degradation/",
    "boto3": None,
    "botocore": None,
    "fastapi": "pipelines/serving/",
    "fsspec": "pipelines/storage/",
    "ijson": "pipelines/sources/",
    "jinja2": "pipelines/report/",
    "lpips": None,
    "mlflow": ("pipelines/registry/", "pipelines/tracking/"),
    "ncnn": "pipelines/restoration/",
    "pyarrow": "pipelines/dataset/",
    "pydantic": "pipelines/recipes/",
    "ray": "pipelines/cluster/",
    "s3fs": "pipelines/storage/",
    "starlette": "pipelines/serving/",
    "torchmetrics": None,
    "torchvision": None,
    "typer": "pipelines/cli/",
    "uvicorn": "pipelines/serving/",
    "webdataset": "diffbfr/shards/",
    "yaml": "pipelines/recipes/",
}
"""Outside package -> the one place that may import it; None: nowhere."""

OUTSIDE_PACKAGES_OF_DIFFBFR = {
    "albumentations",
    "cv2",
    "jaxtyping",
    "numpy",
    "PIL",
    "safetensors",
    "torch",
    "triton",
    "webdataset",
}
HEAVY = ("torch", "ray", "mlflow", "pyarrow", "cv2", "numpy", "pydantic", "s3fs", "albumentations")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module named by an import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative; write the full name"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module in ("diffbfr", "pipelines"):
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room_of(module: str) -> str:
    """The room of one of our modules; "" for the outermost package alone."""
    package, _, rest = module.partition(".")
    return "diffbfr" if package == "diffbfr" else rest.partition(".")[0]


def floor(room: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"{room} is on no floor; give it a place in FLOORS"
    return found[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = room_of(module_name(path))
    for module, line in imports(path):
        if module.partition(".")[0] not in ("diffbfr", "pipelines"):
            continue
        other = room_of(module)
        if own and other and other != own:
            assert floor(other) < floor(own), f"{path}:{line} imports {module}, which is not on a floor below"


def test_pipelines_has_no_loose_module() -> None:
    assert sorted(path.name for path in (ROOT / "pipelines").glob("*.py")) == ["__init__.py", "progress.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_outside_system_has_one_door(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for module, line in imports(path):
        outside = module.partition(".")[0]
        if outside in DOORS:
            door = DOORS[outside]
            assert door is not None, f"{place}:{line} imports {outside}, which nothing here may"
            assert place.startswith(door), f"{place}:{line} imports {outside}, whose door is {door}"
        if place.startswith("diffbfr/") and outside not in sys.stdlib_module_names:
            assert outside in {"diffbfr"} | OUTSIDE_PACKAGES_OF_DIFFBFR, (
                f"{place}:{line} imports {module}; diffbfr/ is the paper alone"
            )


@pytest.mark.parametrize("package", ["diffbfr", "pipelines", "pipelines/steps", "pipelines/flows"])
def test_the_outermost_packages_hold_no_code(package: str) -> None:
    """Importing them is free, and the identity of a step's code need not count them."""
    statements = ast.parse((ROOT / package / "__init__.py").read_bytes()).body
    assert all(
        isinstance(statement, ast.Expr) or ast.unparse(statement).startswith("__version__")
        for statement in statements
    )


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("diffbfr", HEAVY),
        ("pipelines.cluster", HEAVY),
        ("pipelines.execution.artifact_store", HEAVY),
        ("pipelines.registry", ("mlflow", "torch", "ray", "pyarrow", "cv2")),
        ("pipelines.storage", HEAVY),
        ("pipelines.recipes.recipe", ("ray", "mlflow", "pyarrow", "albumentations")),
    ],
)
def test_an_import_costs_only_what_it_must(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy_and_costs_less_than_half_a_second() -> None:
    """Processor time, which is what an idle machine makes one wait for, and which busy cores do not
    stretch.
    """
    code = (
        "import sys, time; sys.argv = ['diffbfr', '--help']\nfrom pipelines.cli import main\n"
        f"try: main()\nfinally: print([name for name in {HEAVY!r} if name in sys.modules], "
        "time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert "restore" in done.stdout
    modules, _, seconds = done.stderr.strip().rpartition(" ")
    assert modules == "[]"
    assert float(seconds) < 0.5
