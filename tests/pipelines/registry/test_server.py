"""The whole registry with SQLite and with servers on PostgreSQL and S3: only the URI changes."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import diffbfr
from diffbfr.digests import model_digest
from diffbfr.images import decode, encode_png
from diffbfr.synthetic import render_face
from pipelines.cli import main
from pipelines.registry import (
    collect_garbage,
    fsck,
    list_actions,
    list_versions,
    promote,
    register_cascade,
    register_stage,
    resolve,
    rollback,
)
from pipelines.registry import gc as module
from pipelines.tracking.connection import Registry, open_registry
from pipelines.tracking.runs import step_run
from tests.pipelines.registry.contenders import PROJECT, contend
from tests.pipelines.registry.fixtures import ROOT, StageMaker, cascade_folder, lineage
from tests.pipelines.registry.mlflow_server import mlflow_server
from tests.pipelines.registry.postgres import postgres
from tests.pipelines.registry.scored import measured
from tests.pipelines.tiny_cascade import HQ_PX, make_tiny_cascade

pytestmark = pytest.mark.slow


@pytest.fixture(params=["embedded", "server on PostgreSQL", "server on S3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, shared_root: Path) -> Iterator[str]:
    """URI of a registry: SQLite; a server with tables in PostgreSQL; a server with files in a bucket."""
    with ExitStack() as running:
        if request.param == "embedded":
            _ = open_registry(str(shared_root)).client
            shutil.copy(shared_root / "mlflow.db", tmp_path / "mlflow.db")
            yield f"sqlite:///{tmp_path}/mlflow.db"
        elif request.param == "server on PostgreSQL":
            database = running.enter_context(postgres())
            yield running.enter_context(mlflow_server(tmp_path, str(tmp_path / "store"), database=database))
        else:
            store = f"{request.getfixturevalue('s3_bucket')}/mlflow-{tmp_path.name}"
            environment = {"MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
            yield running.enter_context(mlflow_server(tmp_path, store, environment))


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Output of a command, which must end with exit code 0."""
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
    monkeypatch.setattr(module, "_MAY_UPLOAD_S", 0.0)
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
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("diffbfr-cascade")] == [
        "champion",
        "previous",
    ]
    assert "digest" in call(monkeypatch, capsys, "show", "diffbfr-cascade@champion", *place)
    call(monkeypatch, capsys, "rollback", "--why", "and back", *place)
    assert "number 1" in call(monkeypatch, capsys, "log", *place)
    chain = call(monkeypatch, capsys, "lineage", "diffbfr-cascade@champion", *place)
    assert [line.split()[1] for line in chain.splitlines() if "@" in line][1:] == [
        "diffbfr-irm1@2",
        "diffbfr-irm2@2",
        "diffbfr-tem@2",
    ]
    assert "nothing wrong" in call(monkeypatch, capsys, "fsck", *place)
    assert [it.action for it in list_actions(registry)] == [
        "holdout",
        "promote",
        "promote",
        "rollback",
        "rollback",
    ]

    register(registry, 3, stage_folder, tmp_path)
    register(registry, 4, stage_folder, tmp_path)
    contest = contend(tmp_path, uri, registry.experiment, 4)
    assert sorted(contest.answers)[-1] == "won", contest.answers
    assert sum("has no 'candidate'" in answer for answer in contest.answers) == 3, contest.answers
    assert [pair for pair in ([2, 1], [2, 2], [4, 2]) if pair in contest.seen] == contest.seen
    removed = {removal.name for removal in collect_garbage(registry, ROOT, ())}
    assert {name for name in removed if name.startswith("diffbfr-cascade")} == {
        "diffbfr-cascade@1",
        "diffbfr-cascade@3",
    }
    assert len(list_versions(registry)) == 8
    assert fsck(registry) == ()
    assert resolve("diffbfr-cascade@champion", registry, tmp_path / "cache").ref == "diffbfr-cascade@4"
    assert resolve("diffbfr-cascade@previous", registry, tmp_path / "cache").ref == "diffbfr-cascade@2"


@pytest.mark.parametrize("uri", ["server on S3"], indirect=True)
def test_a_cascade_in_a_bucket_behind_a_server_keeps_its_promises(uri: str, tmp_path: Path) -> None:
    """It loads without pickle and S3 credentials, has its signature, and requires only this package."""
    folder, registry = make_tiny_cascade(tmp_path / "cascade"), open_registry(str(tmp_path), uri)
    with step_run(registry, "register", "a" * 20) as run:
        stages = {stage: register_stage(run, stage, folder, lineage()) for stage in ("irm1", "irm2", "tem")}  # type: ignore[arg-type]
        register_cascade(run, folder, stages, lineage())  # type: ignore[arg-type]
    picture = encode_png(render_face(1, HQ_PX).pixels)
    hidden = {name: "" for name in os.environ if name.startswith("AWS_")}
    requirements, signature, restored = load_without_pickle(uri, picture, hidden)
    assert requirements == f"diffbfr=={diffbfr.__version__}"
    assert '"string"' in signature
    assert decode(base64.b64decode(restored)).pixels.shape == (HQ_PX, HQ_PX, 3)


_LOAD = """
import json, sys
from pathlib import Path
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
place = mlflow.artifacts.download_artifacts("models:/diffbfr-cascade@candidate")
print((Path(place) / "requirements.txt").read_text().strip())
model = mlflow.pyfunc.load_model(place)
print(model.metadata.signature.inputs.to_json())
print(model.predict([sys.stdin.read()])[0])
"""


def load_without_pickle(uri: str, picture: bytes, hidden: dict[str, str]) -> list[str]:
    """Load the candidate in its own process; returns its requirements, its signature and a restoration."""
    environment = {
        **os.environ,
        **hidden,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    words = [sys.executable, "-c", _LOAD, uri]
    sent = base64.b64encode(picture).decode()
    done = subprocess.run(
        words,
        input=sent,
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-3:]
