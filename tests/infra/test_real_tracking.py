"""Runs against an MLflow server as in production: what it refuses, a minute without it, two drivers at once."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.registry import CASCADE, fsck, list_versions, resolve
from pipelines.tracking.connection import open_registry
from tests.infra.ceph import CephServer, ceph
from tests.infra.secure_mlflow import ADMIN, PASSWORD, SecureMlflow
from tests.infra.smoke import diffbfr, run_words
from tests.pipelines.registry.postgres import postgres

ASKED_FOR = "DIFFBFR_TEST_SERVICES"
AWAY_S = 60.0

pytestmark = [
    pytest.mark.skipif(not os.environ.get(ASKED_FOR), reason=f"takes many minutes; set {ASKED_FOR}=1"),
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    with ceph(tmp_path_factory.mktemp("ceph")) as running:
        yield running


@pytest.fixture(scope="module")
def server(bucket: CephServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMlflow]:
    folder = tmp_path_factory.mktemp("mlflow")
    environment = {**bucket.environment, "MLFLOW_S3_ENDPOINT_URL": bucket.endpoint}
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        started = time.monotonic()
        running = SecureMlflow(folder, database, "s3://diffbfr/mlflow", environment)
        stack.callback(running.stop)
        print(json.dumps({"seconds until the server answers": round(time.monotonic() - started, 1)}))
        yield running


def words(root: str, server: SecureMlflow, *settings: str) -> list[str]:
    return run_words(root, server.uri, ["cluster.num_workers=0", *settings])


def test_the_server_lets_in_whom_it_should(server: SecureMlflow) -> None:
    assert server.status("localhost", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=x") == 401
    assert server.status("127.0.0.1", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=x") == 403


def test_the_server_runs_no_jobs(server: SecureMlflow) -> None:
    import requests

    answer = requests.post(
        f"{server.uri}/ajax-api/3.0/jobs/",
        json={"job_name": "invoke_scorer", "params": {}},
        auth=(ADMIN, PASSWORD),
        verify=str(server.authority),
        timeout=60,
    )
    print(answer.status_code, answer.text[:300])
    assert not answer.ok
    assert "job execution feature is not enabled" in answer.text


def test_the_doctor_and_a_run_say_what_is_refused_before_any_work(
    bucket: CephServer, server: SecureMlflow, tmp_path: Path
) -> None:
    import requests

    root = str(tmp_path / "refused")
    doctor_words = ["doctor", "--root", root, "--set", "cluster.num_workers=0", "--set"]
    made = requests.post(
        f"{server.uri}/api/2.0/mlflow/users/create",
        json={"username": "reader", "password": "another-long-password"},
        auth=(ADMIN, server.client()["MLFLOW_TRACKING_PASSWORD"]),
        verify=str(server.authority),
        timeout=30,
    )
    assert made.ok, made.text
    cases = {
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD": server.client("nobody", "wrong"),
        "set MLFLOW_TRACKING_SERVER_CERT_PATH": {},
    }
    first = diffbfr([*doctor_words, f"tracking.uri={server.uri}"], server.client())
    print(first.stdout, first.stderr)
    assert first.returncode == 0
    assert "tag and file written, read back" in first.stdout
    assert "tracking server" in first.stdout
    cases["refuses this user"] = server.client("reader", "another-long-password")
    for says, environment in cases.items():
        done = diffbfr(words(root, server), environment)
        assert done.returncode == 2, (says, done.stderr[-2000:])
        assert says in done.stderr.splitlines()[-1], done.stderr[-2000:]
        doctor = diffbfr([*doctor_words, f"tracking.uri={server.uri}"], environment)
        assert doctor.returncode == 1
        assert says in doctor.stdout
    assert not Path(root, "artifacts").exists()


def test_artifacts_that_the_server_cannot_store_end_a_run_before_it_begins(
    bucket: CephServer, server: SecureMlflow, tmp_path: Path
) -> None:
    bucket.stop()
    try:
        done = diffbfr(words(str(tmp_path / "root"), server), server.client())
    finally:
        bucket.start()
    print(done.stderr[-500:])
    assert done.returncode == 2
    assert "takes no file" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "root" / "artifacts").exists()


def test_a_minute_without_the_server_and_two_drivers_at_once(
    server: SecureMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of other seeds share the registry; while both train, the server is away for a minute."""
    for name, value in server.client().items():
        monkeypatch.setenv(name, value)
    done: dict[int, list[subprocess.CompletedProcess[str]]] = {1: [], 2: []}

    def drive(number: int) -> None:
        settings = [f"data.seed={number}"]
        while not done[number] or (done[number][-1].returncode and len(done[number]) < 6):
            done[number].append(diffbfr(words(str(tmp_path / f"root-{number}"), server, *settings)))

    drivers = [threading.Thread(target=drive, args=(number,)) for number in (1, 2)]
    for driver in drivers:
        driver.start()
    deadline = time.monotonic() + 900
    while not all(list(tmp_path.glob(f"root-{it}/artifacts/train-*/*/checkpoints")) for it in (1, 2)):
        assert time.monotonic() < deadline, [[it.stderr[-1000:] for it in runs] for runs in done.values()]
        time.sleep(0.2)
    server.stop()
    time.sleep(AWAY_S)
    server.start()
    for driver in drivers:
        driver.join()
    codes = {number: [it.returncode for it in runs] for number, runs in done.items()}
    print(json.dumps({"codes": codes, "lines": [runs[0].stderr[-400:] for runs in done.values()]}))
    assert [runs[-1] for runs in codes.values()] == [0, 0]

    registry = open_registry(str(tmp_path), server.uri)
    versions = list_versions(registry)
    assert len(versions) == 8, [version.ref for version in versions]
    assert len({version.digest for version in versions}) == 8
    assert fsck(registry) == ()
    found = resolve(f"{CASCADE}@candidate", registry, tmp_path / "cache")
    assert found.ref in (f"{CASCADE}@1", f"{CASCADE}@2")
    runs = registry.client.search_runs([registry.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for metric in run.data.metrics:
            points = registry.client.get_metric_history(run.info.run_id, metric)
            assert len({(it.step, it.timestamp) for it in points}) == len(points), "a point came twice"
