"""A model runs no code of its author: our commands read safetensors and JSON, and load nothing else."""

import ast
import os
import pickle
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from diffbfr.stages import STAGE_NAMES
from pipelines.execution.artifact_store import ArtifactStore
from pipelines.flows.lineage import trace
from pipelines.registry import ModelVersion, fetch, fsck, get_version
from pipelines.registry.packaging import SERVED, served_tags
from pipelines.tracking.connection import Registry
from tests.pipelines.registry.fixtures import CascadeMaker

ROOT = Path(__file__).parents[2]
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.jit.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "cloudpickle.loads",
    "yaml.unsafe_load",
    "yaml.full_load",
    "mlflow.pyfunc.load_model",
    "load_model",
    "importlib.import_module",
    "runpy.run_path",
}
ALLOWED = {
    "pipelines/sources/sandbox.py": {"pickle.loads"},  # the child reads its parent's questions
    "pipelines/sources/unpack.py": {"importlib.import_module"},  # of a module of the standard library
}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_bytes())
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


FILES = sorted(path for package in ("diffbfr", "pipelines") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_loads_what_can_hold_code(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for called, node in calls(path):
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if called == "torch.load" and options.get("weights_only") == "True":  # tensors alone
            continue
        assert called not in RUNS_CODE - ALLOWED.get(place, set()), f"{place}:{node.lineno} calls {called}"
        if called == "np.load":
            assert options.get("allow_pickle", "False") == "False", f"{place}:{node.lineno}"
        if called == "yaml.load":
            assert place == "pipelines/recipes/settings_file.py"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch '{self.place}'",)


def plant(version: ModelVersion, owned: Path) -> Path:
    """Put code wherever MLflow or torch might run it from into the files of a registered version."""
    folder = Path(unquote(urlsplit(version.source).path))
    code = f"import pathlib\npathlib.Path({str(owned)!r}).touch()\n"
    (folder / SERVED).write_text(code)
    (folder / "code").mkdir()
    for name in ("code/diffbfr.py", "loader.py", "artifacts/cascade/sitecustomize.py", "conftest.py"):
        (folder / name).write_text(code)
    for name in ("python_model.pkl", "model.pkl", "artifacts/cascade/irm1.pt", "artifacts/cascade/data.pkl"):
        (folder / name).write_bytes(pickle.dumps(Touch(owned)))
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["python_function"] |= {
        "code": "code",
        "loader_module": "loader",
        "python_model": "python_model.pkl",
        "cloudpickle_version": "3.0.0",
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    return folder


@pytest.mark.slow
def test_commands_on_a_registered_model_run_none_of_its_code(
    registry: Registry, make_cascade: CascadeMaker, tmp_path: Path
) -> None:
    owned = tmp_path / "owned"
    version = make_cascade()
    plant(version, owned)
    fetched = fetch(registry, version, tmp_path / "cache")
    assert all((fetched / f"{stage}.safetensors").is_file() for stage in STAGE_NAMES)
    trace(registry, ArtifactStore(str(tmp_path / "root")), version.ref)
    problems = [problem.problem for problem in fsck(registry)]
    assert any("its code changed" in problem for problem in problems)
    assert get_version(registry, version.ref) == version
    assert not owned.exists()


@pytest.mark.slow
def test_a_description_of_aliases_ends_at_once(
    registry: Registry, make_cascade: CascadeMaker, tmp_path: Path
) -> None:
    version = make_cascade()
    folder = Path(unquote(urlsplit(version.source).path))
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, 30):
        parts = ", ".join(f"k{i}: *a{level - 1}" for i in range(9))
        lines.append(f"a{level}: &a{level} {{{parts}}}")
    (folder / "MLmodel").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="unfolds to more than"):
        served_tags(folder)
    assert any("it cannot be served" in problem.problem for problem in fsck(registry))
