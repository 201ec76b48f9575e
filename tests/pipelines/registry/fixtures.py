import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffbfr.spec import to_dict
from diffbfr.stages import IRM1_TINY, IRM2_TINY, TEM_TINY
from pipelines.registry import Lineage, ModelVersion, register_cascade, register_stage
from pipelines.tracking.connection import Registry, open_registry
from pipelines.tracking.runs import Run, step_run

ROOT = "/root-of-the-test"
SPECS = {"irm1": IRM1_TINY, "irm2": IRM2_TINY, "tem": TEM_TINY}


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an empty database is made once for the session: making one takes seconds."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def registry(tmp_path: Path, shared_root: Path) -> Registry:
    """A registry with a fresh copy of an initialised, empty database."""
    template = open_registry(str(shared_root))
    if not (shared_root / "mlflow.db").exists():
        _ = template.client
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(shared_root / "mlflow.db", root / "mlflow.db")
    return open_registry(str(root), experiment=f"test-{tmp_path.name}")


@pytest.fixture
def run(registry: Registry) -> Iterator[Run]:
    with step_run(registry, "register", "a" * 20) as it:
        yield it


def lineage(**parents: str) -> Lineage:
    return Lineage(
        content_id="d" * 64,
        recipe="smoke",
        artifact_id="a" * 20,
        code_digest="c" * 64,
        parents=parents,
        root=ROOT,
    )


StageMaker = Callable[[str, int], Path]


@pytest.fixture
def stage_folder(tmp_path: Path) -> StageMaker:
    """Make the folder of a stage whose weights depend on a number."""

    def make(stage: str, number: int) -> Path:
        folder = tmp_path / "made" / f"{stage}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {"w": np.full((2, 3), number, np.float32)},
            folder / f"{stage}.safetensors",
            metadata={"stage": stage},
        )
        (folder / f"{stage}.json").write_text(json.dumps(to_dict(SPECS[stage])))
        return folder

    return make


CascadeMaker = Callable[..., ModelVersion]


def cascade_folder(root: Path, stages: dict[str, Path], number: int = 0) -> Path:
    folder = root / f"cascade-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    for stage, place in stages.items():
        for suffix in ("json", "safetensors"):
            shutil.copyfile(place / f"{stage}.{suffix}", folder / f"{stage}.{suffix}")
    (folder / "cascade.json").write_text(f'{{"number": {number}}}')
    return folder


@pytest.fixture
def make_cascade(run: Run, stage_folder: StageMaker, tmp_path: Path) -> CascadeMaker:
    """Register three stages and the cascade of them; another number makes other models."""

    def make(number: int = 0) -> ModelVersion:
        folders = {stage: stage_folder(stage, number) for stage in ("irm1", "irm2", "tem")}
        irm1 = register_stage(run, "irm1", folders["irm1"], lineage())
        irm2 = register_stage(run, "irm2", folders["irm2"], lineage(irm1=irm1.digest))
        tem = register_stage(run, "tem", folders["tem"], lineage())
        folder = cascade_folder(tmp_path, folders, number)
        return register_cascade(run, folder, {"irm1": irm1, "irm2": irm2, "tem": tem}, lineage())

    return make
