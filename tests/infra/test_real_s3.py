"""A whole run on a real S3 server that is stopped for a minute in each step: nothing lost, nothing doubled."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from tests.infra.ceph import CephServer, ceph
from tests.infra.smoke import FIXED_ORDER, contents, run_here

ASKED_FOR = "DIFFBFR_TEST_SERVICES"
AWAY_S = 60.0
STEPS = ("shard", "train-irm1", "train-tem", "condition-irm1", "train-irm2", "cascade", "evaluate", "restore")
"""Every step of a run that writes to the root while it works; the registration writes at its end alone."""
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
MOST_RUNS = 30

pytestmark = [
    pytest.mark.skipif(not os.environ.get(ASKED_FOR), reason=f"takes many minutes; set {ASKED_FOR}=1"),
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    with ceph(tmp_path_factory.mktemp("ceph")) as running:
        yield running


def files(root: str) -> set[str]:
    """Every file of the artifacts below its step, without what a checkpoint's upload or Ray leaves.

    The artifact's own folder is left out: the identity of a registration names the registry. `contents` finds
    one artifact a step.
    """
    entries = storage.walk(storage.join(root, "artifacts"))
    places = [entry.path.split("/", 2) for entry in entries if "/checkpoints/" not in entry.path]
    return {f"{step}/{rest}" for step, _, rest in places}


class Outages(threading.Thread):
    """Stops the server for a minute when a step has written its first object, once for each step."""

    def __init__(self, server: CephServer, prefix: str) -> None:
        super().__init__(daemon=True)
        self._server, self._prefix = server, prefix
        self.begun: dict[str, bool] = {}
        """Step -> whether it was still at work when the server was stopped."""
        self.ending = threading.Event()

    def run(self) -> None:
        client = self._server.client()
        while not self.ending.wait(0.05):
            for step in STEPS:
                if step not in self.begun and self._keys(client, f"artifacts/{step}/"):
                    self._server.stop()
                    time.sleep(AWAY_S)
                    self._server.start()
                    keys = self._keys(client, f"artifacts/{step}/")
                    self.begun[step] = not any(key.endswith("/record.json") for key in keys)

    def _keys(self, client: Any, below: str) -> list[str]:
        """Keys below a folder; the gateway may answer before its first requests succeed."""
        page = client.list_objects_v2(Bucket="diffbfr", Prefix=f"{self._prefix}/{below}")
        return [row["Key"] for row in page.get("Contents", ())]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the run makes on a local disk, in one process."""
    folder = tmp_path_factory.mktemp("local")
    done = run_here(str(folder / "root"), folder / "tracking", {}, [*FIXED_ORDER, "cluster.num_workers=0"])
    assert done.returncode == 0, done.stderr[-3000:]
    return contents(str(folder / "root"))


@pytest.mark.parametrize("mode", ["when_required", "when_supported"])
def test_a_run_is_the_same_with_and_without_checksum_trailers(
    server: CephServer,
    on_disk: dict[str, dict[str, str]],
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Ray, whose own files go there too; the product asks for no trailers by itself."""
    environment = {**server.environment, **dict.fromkeys(CHECKSUMS, mode)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://diffbfr/{mode}"
    done = run_here(root, tmp_path / "tracking", environment, FIXED_ORDER)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(root) == on_disk


def test_a_server_that_is_away_for_a_minute_in_each_step_loses_and_doubles_nothing(
    server: CephServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    in_process = ["cluster.num_workers=0"]  # without Ray, whose own start would hide the outages
    outages = Outages(server, "away")
    outages.start()
    codes, lines = [], []
    started = time.monotonic()
    while not codes or codes[-1]:
        done = run_here("s3://diffbfr/away", tmp_path / "tracking", server.environment, in_process)
        codes.append(done.returncode)
        lines.append(done.stderr.strip().splitlines()[-1:])
        assert done.returncode in (0, 3), done.stderr[-3000:]
        assert len(codes) < MOST_RUNS, lines
    outages.ending.set()
    outages.join()
    seconds = time.monotonic() - started
    undisturbed = run_here("s3://diffbfr/undisturbed", tmp_path / "2", server.environment, in_process)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    print(json.dumps({"codes": codes, "lines": lines, "seconds": seconds, "during": outages.begun}, indent=1))
    assert set(outages.begun) == set(STEPS)
    assert contents("s3://diffbfr/away") == contents("s3://diffbfr/undisturbed")
    assert files("s3://diffbfr/away") == files("s3://diffbfr/undisturbed")
