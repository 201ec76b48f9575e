"""A real MLflow server as in production: PostgreSQL, S3, users with passwords, TLS of a private authority.

Users need `mlflow[auth]`, that is the package Flask-WTF (BSD), which the lock does not have.
"""

import contextlib
import importlib.util
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.pipelines.registry.mlflow_server import free_port

ADMIN, PASSWORD = "an-admin", "a-long-password"
_START_S = 240.0

_AUTH = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class SecureMlflow:
    """The server; `stop` kills it, `start` starts it with the same database."""

    def __init__(self, folder: Path, database: str, artifacts: str, environment: Mapping[str, str]) -> None:
        if importlib.util.find_spec("flask_wtf") is None:
            pytest.skip("MLflow's users need Flask-WTF: pip install Flask-WTF")
        self.port = free_port()
        self.uri = f"https://localhost:{self.port}"
        self.authority = make_certificates(folder)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "auth.ini").write_text(
            _AUTH.format(database=f"sqlite:///{folder}/users.db", admin=ADMIN, password=PASSWORD)
        )
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "2", "--app-name", "basic-auth", "--allowed-hosts", f"localhost:{self.port}"),
            *("--backend-store-uri", database, "--artifacts-destination", artifacts, "--serve-artifacts"),
            "--uvicorn-opts",
            f"--ssl-keyfile {folder / 'server.key'} --ssl-certfile {folder / 'server.pem'}",
        ]
        self._environment = {
            **os.environ,
            **environment,
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-of-the-test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.start()

    def client(self, user: str = ADMIN, password: str = PASSWORD) -> dict[str, str]:
        """The environment of a user."""
        return {
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.authority),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # of a machine that is busy
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while self.status("localhost", "/health") != 200:
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.5)

    def stop(self) -> None:
        """Kill it with its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)

    def status(self, host: str, path: str) -> int:
        """The HTTP status that somebody without a password gets, by a name of the server; 0 for none."""
        context = ssl.create_default_context(cafile=str(self.authority))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(f"https://{host}:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def log(self) -> str:
        """The end of what the server said."""
        return (self._folder / "server.log").read_text()[-4000:]


def make_certificates(folder: Path) -> Path:
    """Make an authority and the certificate of a server at localhost; returns the authority's."""
    commands = (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority-of-a-test",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile names",
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem"
