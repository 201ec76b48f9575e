"""Other people on the machine: nothing of a Ray of our own is theirs to read, to reach or to run code on.

One driver is started as a user would in a bad place: below `uv run` in a large folder, with a long TMPDIR, a
home that cannot be written, and the variables of another Ray. Then it is attacked.
"""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster import exposure, orphans

_DRIVER = """
import json, os, sys
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.exposure import open_addresses

def where(task):
    return os.getcwd(), oct(os.umask(0o22))

before = {name: value for name, value in os.environ.items() if name.startswith(("RAY_A", "RAY_J", "RAY_RUN"))}
with Cluster(ClusterConfig(num_workers=1, cpus_per_worker=1)) as cluster:
    found = cluster.map(where, [0], label="where")[0]
    import ray
    print(json.dumps({
        "gcs": ray.get_runtime_context().gcs_address, "folder": str(cluster._own_ray._folder),
        "worker": found, "open": open_addresses(), "exposure": cluster.exposure(),
        "runtime_env": dict(ray.get_runtime_context().runtime_env),
    }), flush=True)
    sys.stdin.readline()
after = {name: value for name, value in os.environ.items() if name in before}
print(json.dumps({"restored": before == after}), flush=True)
sys.stdin.readline()
"""
_UV = "import subprocess, sys; sys.exit(subprocess.call([{python!r}, '-c', {code!r}]))"
_CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "code was run").remote()))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    place = tmp_path_factory.mktemp("photos")
    (place / "run").write_text(_UV.format(python=sys.executable, code=_DRIVER))
    with (place / "large.png").open("wb") as file:
        file.truncate(600 << 20)
    long = place / ("t" * 76)
    long.mkdir()
    (place / "home").touch()  # nobody can make a folder in a file, not even root
    token = place / "other_token"
    token.write_text("0" * 64)
    environment = {
        **os.environ,
        "TMPDIR": str(long),
        "HOME": str(place / "home"),
        "RAY_ADDRESS": "192.0.2.1:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"working_dir": str(place)}}),
        "RAY_RUNTIME_ENV_HOOK": "no.such.hook",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    process = subprocess.Popen(
        ["uv", "run"],  # what Ray looks for among the ancestors of a driver
        executable=sys.executable,
        cwd=place,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the driver did not start its Ray"
        yield {**json.loads(line), "place": place, "process": process}
    finally:
        process.communicate("\n\n")
        orphans.end_orphans()


@pytest.mark.cluster
def test_files_and_sockets_are_closed(driver: dict[str, Any]) -> None:
    folder = Path(driver["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    (session,) = (folder / "r").glob("session_2*")
    for name in ("", "logs", "sockets", "sockets/plasma_store", "sockets/raylet"):
        assert stat.S_IMODE((session / name).stat().st_mode) & 0o077 == 0, name


@pytest.mark.cluster
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_sees_and_reaches_nothing(driver: dict[str, Any]) -> None:
    (session,) = Path(driver["folder"], "r").glob("session_2*")
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "for attack in (os.listdir, lambda name: open(name + '/token'), lambda name: socket.socket("
        "socket.AF_UNIX).connect(sys.argv[2])):\n"
        "    try: attack(sys.argv[1])\n"
        "    except PermissionError: print('refused')"
    )
    command = [sys.executable, "-c", code, driver["folder"], str(session / "sockets/raylet")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.split() == ["refused"] * 3


def run_client(address: str, **variables: str) -> str:
    """What a client prints that tries to run code on a Ray from this machine; "" if it is refused."""
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_gcs_rpc_server_connect_timeout_s": "3"}
    try:
        client = subprocess.run(
            [sys.executable, "-c", _CLIENT, address],
            env={**os.environ, **loopback, **variables},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return client.stdout.strip()


@pytest.mark.cluster
def test_only_a_client_with_the_token_runs_code(driver: dict[str, Any]) -> None:
    """The first shows that the attack works where the token is known."""
    token = Path(driver["folder"], "token").read_text()
    assert run_client(driver["gcs"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) == "code was run"
    assert run_client(driver["gcs"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64) == ""
    assert run_client(driver["gcs"], RAY_AUTH_MODE="disabled") == ""


@pytest.mark.cluster
def test_nothing_listens_for_other_machines_and_nothing_is_uploaded(driver: dict[str, Any]) -> None:
    assert driver["gcs"].startswith("127.0.0.1:")
    assert driver["open"] == []
    assert driver["exposure"][0] is True
    assert driver["worker"] == [str(driver["place"]), oct(os.umask(os.umask(0o22)))]
    assert driver["runtime_env"] == {}
    assert len(driver["folder"]) < 44


@pytest.mark.cluster
def test_the_end_leaves_no_file_and_the_environment_as_it_was(driver: dict[str, Any]) -> None:
    """The last test of this driver: it ends it."""
    process = driver["process"]
    process.stdin.write("\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"restored": True}
    assert not Path(driver["folder"]).exists()


def test_an_open_socket_is_found() -> None:
    import socket

    before = exposure.open_addresses()
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        (found,) = set(exposure.open_addresses()) - set(before)
        assert found.endswith(f" 0.0.0.0:{listener.getsockname()[1]}")
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::ffff:127.0.0.1", 0))
        listener.listen()
        assert exposure.open_addresses() == before


@pytest.mark.parametrize(
    ("variables", "ok", "said"),
    [
        ({}, False, "asks for no token: whoever reaches its ports can run code"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a"}, True, "shows a token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "0644"}, False, "can be read by others"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "0600"}, True, "shows a token"),
    ],
)
def test_the_doctor_says_what_is_open_of_a_joined_cluster(
    variables: dict[str, str], ok: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if mode := variables.get("RAY_AUTH_TOKEN_PATH"):
        file = tmp_path / "token"
        file.touch()
        file.chmod(int(mode, 8))
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    found = exposure.describe_joined("head:6379")
    assert found[0] is ok
    assert said in found[1]


@pytest.mark.parametrize(("status", "ok"), [(200, False), (401, True)])
def test_a_dashboard_that_takes_jobs_of_anybody_is_found(
    status: int, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process shows a token, which the cluster may ignore; so the dashboard is asked without."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers.get("Authorization") else status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a")
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        place = f"127.0.0.1:{server.server_port}"
        monkeypatch.setattr(exposure, "dashboard_address", lambda: place)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = exposure.describe_joined("head:6379")
        thread.join()
    assert found[0] is ok
    assert place in found[1]
