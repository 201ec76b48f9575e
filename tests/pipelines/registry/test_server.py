"""Everything that the registry does, with the embedded database and with a server whose files are on S3: only the URI changes."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.registry import (
    Registry,
    collect_garbage,
    fsck,
    list_actions,
    list_versions,
    model_digest,
    open_registry,
    promote,
    register_cascade,
    register_stage,
    resolve,
    rollback,
    step_run,
)
from pipelines.registry import garbage as module
from tests.pipelines.registry.conftest import ROOT, StageMaker, cascade_folder, lineage
from tests.pipelines.registry.mlflow_server import mlflow_server
from tests.pipelines.registry.scored import measured

pytestmark = pytest.mark.slow


@pytest.fixture(params=["embedded", "server on disk", "server on S3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, shared_root: Path) -> Iterator[str]:
    """Where the registry is: a database in a file, or a server that keeps its files on disk or in a bucket."""
    if request.param == "embedded":
        _ = open_registry(str(shared_root)).client
        shutil.copy(shared_root / "mlflow.db", tmp_path / "mlflow.db")
        yield f"sqlite:///{tmp_path}/mlflow.db"
        return
    store = str(tmp_path / "store")
    if request.param == "server on S3":
        store = f"{request.getfixturevalue('s3_bucket')}/mlflow-{tmp_path.name}"
    environment = {"MLFLOW_S3_ENDPOINT_URL": os.environ.get("AWS_ENDPOINT_URL", "")} if store.startswith("s3:") else {}
    with mlflow_server(tmp_path, store, environment) as place:
        yield place


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints; it must end well."""
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert ended.value.code == 0, error
    return str(out)


def register(registry: Registry, number: int, make: StageMaker, tmp_path: Path) -> None:
    folders = {stage: make(stage, number) for stage in ("irm1", "irm2", "tem")}
    with step_run(registry, "register", f"{number:020d}") as run:
        versions = {stage: register_stage(run, stage, folder, lineage()) for stage, folder in folders.items()}  # type: ignore[arg-type]
        folder = cascade_folder(tmp_path, folders, number)
        made = register_cascade(run, folder, versions, lineage())  # type: ignore[arg-type]
        assert register_cascade(run, folder, versions, lineage()) == made  # type: ignore[arg-type]
    measured(registry, made, 22.0 + number / 10, 0.6)


def test_the_registry_does_the_same_wherever_it_is(
    uri: str,
    stage_folder: StageMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "_UNDER_WAY_S", 0.0)
    registry = open_registry(str(tmp_path), uri)
    for number in (1, 2):
        register(registry, number, stage_folder, tmp_path)
        promote(registry, why=f"number {number}")
    stages = ("irm1", "irm2", "tem")
    found = resolve("diffbfr-cascade@champion", registry, tmp_path / "cache")
    assert found.ref == "diffbfr-cascade@2"
    assert model_digest(found.folder, stages) == found.digest == model_digest(tmp_path / "cascade-2", stages)

    assert rollback(registry, why="as a test").champion.ref == "diffbfr-cascade@1"

    place = ("--tracking", uri, "--root", str(tmp_path))
    listed = call(monkeypatch, capsys, "list", *place)
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("diffbfr-cascade")] == ["champion", "previous"]
    assert "digest" in call(monkeypatch, capsys, "show", "diffbfr-cascade@champion", *place)
    call(monkeypatch, capsys, "rollback", "--why", "and back", *place)
    assert "number 1" in call(monkeypatch, capsys, "log", *place)
    chain = call(monkeypatch, capsys, "lineage", "diffbfr-cascade@champion", *place)
    assert [line.split()[1] for line in chain.splitlines() if "@" in line][1:] == ["diffbfr-irm1@2", "diffbfr-irm2@2", "diffbfr-tem@2"]
    assert "nothing wrong" in call(monkeypatch, capsys, "fsck", *place)
    assert [it.action for it in list_actions(registry)] == ["promote", "promote", "rollback", "rollback"]

    register(registry, 3, stage_folder, tmp_path)
    register(registry, 4, stage_folder, tmp_path)
    removed = [removal.name for removal in collect_garbage(registry, ROOT, ())]
    assert removed[0] == "diffbfr-cascade@3"
    assert len(list_versions(registry)) == 12
    assert fsck(registry) == ()
    assert resolve("diffbfr-cascade@champion", registry, tmp_path / "cache").ref == "diffbfr-cascade@2"
