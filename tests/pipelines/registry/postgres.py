"""A real PostgreSQL on loopback, where the machine has one."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.registry.mlflow_server import free_port

_START_S = 60


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server with an empty database; yields its URI.

    Skips the test where PostgreSQL or its driver is not installed.
    """
    pytest.importorskip("psycopg2", reason="the extra `infra` is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # Debian's are not on the PATH
    initdb = shutil.which("initdb") or (str(programs[-1]) if programs else "")
    if not initdb:
        pytest.skip("no PostgreSQL on this machine")
    folder, port = Path(tempfile.mkdtemp()), free_port()
    as_user: dict[str, Any] = {}
    if folder.owner() == "root":  # whom PostgreSQL refuses
        shutil.chown(folder, "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    programs_at = Path(initdb).resolve().parent
    options = ["-D", str(folder / "data"), "-U", "mlflow", "--auth=trust", "--no-sync"]
    subprocess.run([initdb, *options], check=True, capture_output=True, cwd=folder, **as_user)
    words = [
        programs_at / "postgres",
        "-D",
        folder / "data",
        "-F",
        "-k",
        folder,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, **as_user)
    try:
        deadline = time.monotonic() + _START_S
        while subprocess.run(
            [programs_at / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False
        ).returncode:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)
