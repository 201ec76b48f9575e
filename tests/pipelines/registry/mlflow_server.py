"""A real MLflow server on loopback, in its own process."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

START_S = 180


@contextmanager
def mlflow_server(
    folder: Path,
    artifacts: str,
    environment: Mapping[str, str] | None = None,
    port: int = 0,
    database: str = "",
) -> Iterator[str]:
    """Run a server with its files in `artifacts` and its tables in `database` (default SQLite); yields its URI."""
    port = port or free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    stores = [
        "--backend-store-uri",
        database or f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        artifacts,
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "server.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            [*command, *stores],
            env={**os.environ, **quiet, **(environment or {})},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not _answers(uri):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # it may wait for a client that keeps its connection
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=2).close()
    except OSError:
        return False
    return True
