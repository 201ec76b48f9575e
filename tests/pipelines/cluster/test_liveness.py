"""A Ray of our own that loses a vital process is one line within seconds; a signal to all of it drains."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diffbfr.errors import IncompleteError
from pipelines.cluster import orphans
from pipelines.cluster.liveness import RayProcesses

_WORK = """
import sys, time
from pipelines.cli import app
from pipelines.cluster import Cluster, ClusterConfig

def nap(seconds):
    time.sleep(seconds)

def rank(config, reporter):
    for step in range(600):
        time.sleep(0.1)
        reporter.heartbeat(step + 1)

def work():
    with Cluster(ClusterConfig(num_workers=2, cpus_per_worker=1)) as cluster:
        cluster.start()
        print(cluster._own_ray.processes.pids[sys.argv[2]][0], flush=True)
        if sys.argv[1] == "map":
            cluster.map(nap, [0.5] * 200, label="nap")
        elif sys.argv[1] == "actors":
            cluster.map_actors(lambda: nap, [0.5] * 200, label="nap")
        else:
            cluster.train(rank, None, label="train", total=1, root=sys.argv[3])

app.app = work
app.main()
"""


def test_a_process_that_ended_is_named() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    processes = RayProcesses({"raylet": (process.pid, orphans.process_identity(process.pid))})
    processes.check()
    process.kill()
    deadline = time.monotonic() + 5
    while not processes.dead():
        assert time.monotonic() < deadline
    with pytest.raises(IncompleteError, match="the process raylet of Ray has ended; expected it to live"):
        processes.check()
    process.communicate()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kind", "name", "to_all"),
    [
        ("map", "gcs_server", False),
        ("actors", "raylet", False),
        ("train", "gcs_server", False),
        ("actors", "raylet", True),
    ],
)
def test_a_driver_ends_within_seconds(kind: str, name: str, to_all: bool, tmp_path: object) -> None:
    """Of a vital process that is killed, and of SIGTERM to everything, as systemd and Slurm send it."""
    driver = subprocess.Popen(
        [sys.executable, "-c", _WORK, kind, name, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    time.sleep(3)
    started = time.monotonic()
    if to_all:
        os.killpg(driver.pid, signal.SIGTERM)
    else:
        os.kill(pid, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.startswith("diffbfr: ")]
    assert time.monotonic() - started < 20, errors
    if to_all:
        assert driver.returncode == 143, errors
        assert lines == ["diffbfr: ended by SIGTERM; the same command goes on from here"]
    else:
        assert driver.returncode == 3, errors
        assert len(lines) == 1
        assert lines[0].startswith(f"diffbfr: the process {name} of Ray has ended")
    assert "add machines" not in errors
    identity = f":{driver.pid}:"
    assert not orphans.find_processes(lambda found: identity in found)
