import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffbfr.errors import UsageError
from pipelines.registry import list_versions
from pipelines.tracking.connection import Registry, open_registry
from pipelines.tracking.runs import step_run


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
    with step_run(registry, "quiet", "q" * 20) as run:
        run.log_metrics({"psnr": 20.0})
    assert capfd.readouterr() == ("", "")


def _touch(root: str) -> str:
    return open_registry(root).experiment_id


@pytest.mark.slow
def test_processes_that_meet_on_a_fresh_root_all_succeed(tmp_path: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_touch, [str(tmp_path)] * 3) == ["1", "1", "1"]
