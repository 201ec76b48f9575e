"""What an MLflow server or database answers that cannot be used: one line with what helps, at once."""

import http.server
import os
import shutil
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from diffbfr.errors import IncompleteError, UsageError
from pipelines.tracking import access, connection
from pipelines.tracking.access import explain
from pipelines.tracking.connection import Registry, database_file, open_registry

Start = Callable[..., str]


class _Answer(http.server.BaseHTTPRequestHandler):
    """Gives one answer to everything."""

    def __init__(self, status: int, kind: str, body: bytes, *args: object) -> None:
        self._answer = status, kind, body
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        status, kind, body = self._answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Start]:
    """Start servers that give one answer; returns the URI."""
    servers = []

    def start(
        status: int = 404,
        kind: str = "application/json",
        body: bytes = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}',
        certificate: Path | None = None,
    ) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answer, status, kind, body))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of an authority that nobody knows, with its key."""
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", file], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_TRACKING_", "REQUESTS_CA"))]:
        monkeypatch.delenv(name)
    connection._report_unused.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "is_path"),
    [
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", True),
        ("REQUESTS_CA_BUNDLE", True),
        ("MLFLOW_TRACKING_INSECURE_TLS", False),
    ],
)
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_server_of_a_private_authority_is_reached_with_the_settings_of_mlflow(
    variable: str, is_path: bool, serve: Start, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = serve(certificate=certificate)
    with pytest.raises(UsageError, match=r"certificate of the MLflow server .* is not accepted") as caught:
        access.check_server(uri, "diffbfr")
    assert "set MLFLOW_TRACKING_SERVER_CERT_PATH" in str(caught.value)
    monkeypatch.setenv(variable, str(certificate) if is_path else "true")
    access.check_server(uri, "diffbfr")


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_a_refused_user_is_told_which_variables_to_set(status: int, kind: str, serve: Start) -> None:
    body = b'{"error_code": "X", "message": "no"}' if "json" in kind else b"You are not authenticated."
    with pytest.raises(UsageError, match=rf"refuses this user \({status} .*set MLFLOW_TRACKING_USERNAME and"):
        access.check_server(serve(status, kind, body), "diffbfr")


@pytest.mark.slow
def test_another_server_is_no_mlflow_and_a_busy_one_is(serve: Start) -> None:
    with pytest.raises(UsageError, match=r"no MLflow server \(200 OK\)"):
        access.check_server(serve(200, "text/html", b"<html>"), "diffbfr")
    access.check_server(serve(503, "text/html", b"busy"), "diffbfr")


def test_a_refusal_later_in_the_work_is_known() -> None:
    from mlflow.exceptions import RestException

    refusal = RestException({"error_code": "PERMISSION_DENIED", "message": "no"})
    assert isinstance(explain("", refusal), UsageError)
    text = "API request to endpoint /x failed with error code 401 != 200"
    assert isinstance(explain("http://u:secret@host", Exception(text)), UsageError)
    assert explain("", Exception("error code 500")) is None


def test_a_dead_database_is_one_line_at_once_without_its_password() -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"no database answers at .*\*\*\*@127") as caught:
        access.check_database("postgresql+psycopg2://me:secret@127.0.0.1:1/tracking")
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_file_that_is_no_database_and_one_that_is_locked(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UsageError, match=r"cannot be opened \(.*file is not a database"):
        _ = open_registry(str(tmp_path)).client
    import sqlalchemy.exc

    locked = sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
    assert isinstance(explain("sqlite:////x", locked), IncompleteError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("451aebb31d03", "run `mlflow db upgrade sqlite:///"),
        ("ffffffffffff", "install the MLflow that made it"),
    ],
)
def test_a_database_of_another_schema_is_told_what_helps(version: str, remedy: str, tmp_path: Path) -> None:
    _ = open_registry(str(tmp_path)).client
    other = tmp_path / "other"  # MLflow does not look again at a database that it has opened
    other.mkdir()
    shutil.copy(tmp_path / "mlflow.db", other)
    with sqlite3.connect(other / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    with pytest.raises(UsageError) as caught:
        _ = open_registry(str(other)).client
    assert remedy in str(caught.value)
    assert version in str(caught.value)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "a b", "äöü", "a%3Fb%25"])
def test_the_database_of_any_root_is_named_so_that_it_lies_there(name: str, tmp_path: Path) -> None:
    import sqlalchemy

    registry = open_registry(str(tmp_path / name))
    assert database_file(registry) == tmp_path / name / "mlflow.db"
    assert sqlalchemy.make_url(registry.uri).database == str(tmp_path / name / "mlflow.db")


@pytest.mark.slow
def test_a_root_with_a_query_in_its_name_holds_its_database_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    root = tmp_path / "photos?of%20may"
    registry = open_registry(str(root))
    run = registry.client.create_run(registry.experiment_id)
    registry.client.log_text(run.info.run_id, "text", "note.txt")
    assert (root / "mlflow.db").stat().st_size > 0
    assert list((root / "mlartifacts").rglob("note.txt"))
    assert [place.name for place in tmp_path.iterdir()] == [root.name]


def test_variables_of_mlflow_that_are_not_used_are_named_once_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    for _ in range(2):
        open_registry(str(tmp_path))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(
        "MLFLOW_TRACKING_URI=https://***@mlflow.example is not used, tracking goes to sqlite:"
    )
    assert "--set tracking.uri=..." in lines[0]
    assert lines[1].startswith("MLFLOW_EXPERIMENT_NAME=other is not used, tracking goes to diffbfr")


def test_a_variable_that_names_what_is_used_is_not_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert open_registry(str(tmp_path), "http://mlflow:5000") == Registry("http://mlflow:5000", None)
    assert not caplog.records
