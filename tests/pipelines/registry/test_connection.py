import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.registry import (
    Registry,
    fsck,
    list_versions,
    model_digest,
    open_registry,
    pipeline_run,
    register_cascade,
    register_stage,
    resolve,
)
from tests.pipelines.registry.conftest import StageMaker, cascade_folder, lineage


def test_importing_the_package_imports_no_mlflow() -> None:
    code = "import sys, pipelines.registry; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_default_is_sqlite_beside_the_artifacts(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path))
    assert registry.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert registry.artifacts == (tmp_path / "mlartifacts").as_uri()


def test_a_remote_root_needs_a_server() -> None:
    with pytest.raises(UsageError, match=r"tracking\.uri"):
        open_registry("s3://bucket/root")


def test_a_server_keeps_its_own_artifacts() -> None:
    assert open_registry("s3://bucket/root", "http://mlflow:5000/") == Registry("http://mlflow:5000", None)


def test_a_folder_is_no_tracking_uri(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither http"):
        open_registry(str(tmp_path), uri=str(tmp_path / "mlruns"))


def test_a_dead_server_is_one_clear_line_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UsageError, match="no MLflow server answers") as refusal:
        list_versions(open_registry(str(tmp_path), f"http://127.0.0.1:{port}"))
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < 10


def test_a_working_registry_says_nothing(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    with pipeline_run(registry, "quiet", "plan") as run:
        run.log_metrics({"psnr": 20.0})
    assert capfd.readouterr() == ("", "")


def _touch(root: str) -> str:
    return open_registry(root).experiment_id


@pytest.mark.slow
def test_processes_that_meet_on_a_fresh_root_all_succeed(tmp_path: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_touch, [str(tmp_path)] * 3) == ["1", "1", "1"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server with its own artifact store, as a team would run it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "store")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *stores], env=environment, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_server_serves_the_same_as_the_local_database(server: str, tmp_path: Path, stage_folder: StageMaker) -> None:
    registry = open_registry("s3://nobody/root", server)
    folders = {stage: stage_folder(stage, 1) for stage in ("irm1", "irm2", "tem")}
    with pipeline_run(registry, "smoke", "plan") as run:
        versions = {stage: register_stage(run, stage, folder, lineage()) for stage, folder in folders.items()}  # type: ignore[arg-type]
        folder = cascade_folder(tmp_path, folders)
        cascade = register_cascade(run, folder, versions, lineage())  # type: ignore[arg-type]
        assert register_cascade(run, folder, versions, lineage()) == cascade  # type: ignore[arg-type]
    found = resolve("diffbfr-cascade@candidate", registry, tmp_path / "cache")
    assert found.folder.is_relative_to(tmp_path / "cache")
    stages = ("irm1", "irm2", "tem")
    assert model_digest(found.folder, stages) == found.digest == model_digest(folder, stages)
    stamp = (found.folder / "tem.safetensors").stat().st_mtime_ns
    assert resolve("diffbfr-cascade@1", registry, tmp_path / "cache").folder == found.folder
    assert (found.folder / "tem.safetensors").stat().st_mtime_ns == stamp
    assert fsck(registry) == ()
