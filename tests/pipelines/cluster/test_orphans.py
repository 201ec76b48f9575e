"""A driver that ends, however it ends, leaves no process of its own Ray behind, and no other is touched."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.orphans import (
    DRIVER_VARIABLE,
    end_orphans,
    find_processes,
    process_identity,
)

# Starts a process that ignores SIGTERM and never ends, such as an interpreter that hangs at its exit.
_START_STUBBORN = """
import signal, subprocess, sys
def start_stubborn(number=0):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    code += "; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.read(1)
    return process.pid
"""

_MARKED = f"""
{_START_STUBBORN}
from pipelines.cluster.orphans import marked_processes
with marked_processes():
    print(start_stubborn(), flush=True)
sys.stdin.read()
"""

_WITH_RAY = f"""
{_START_STUBBORN}
from pipelines.cluster import Cluster, ClusterConfig
with Cluster(ClusterConfig(num_workers=1, cpus_per_worker=1)) as cluster:
    print(*cluster.map(start_stubborn, [0], label="start"), flush=True)
    sys.stdin.read()
"""


class Driver:
    """A driver in a process of its own, once it has started its processes."""

    def __init__(self, code: str, **variables: str) -> None:
        unset = {DRIVER_VARIABLE: "", "RAY_ADDRESS": ""}
        variables = {name: value for name, value in os.environ.items() if name not in unset} | variables
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.child = int(self._process.stdout.readline())
        self.identity = process_identity(self._process.pid)

    def processes(self) -> set[int]:
        """The PIDs of what it started."""
        return {pid for pid, _ in find_processes(lambda driver: driver == self.identity)}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Let it come to its end; returns its exit code."""
        self._process.communicate()
        return self._process.returncode


@pytest.fixture
def start() -> Iterator[Callable[..., Driver]]:
    """Start drivers, which are killed after the test."""
    started: list[Driver] = []

    def start_driver(code: str, **variables: str) -> Driver:
        started.append(Driver(code, **variables))
        return started[-1]

    yield start_driver
    for each in started:
        each.kill()
    end_orphans()


def test_processes_of_a_killed_driver_are_ended_and_those_of_a_living_one_are_not(
    start: Callable[..., Driver],
) -> None:
    killed, living = start(_MARKED), start(_MARKED)
    assert (killed.processes(), living.processes()) == ({killed.child}, {living.child})
    killed.kill()
    assert killed.processes() == {killed.child}
    with Cluster(ClusterConfig(num_workers=0)):
        assert killed.processes() == set()
    assert living.processes() == {living.child}


_BOTH = """
import os, subprocess, sys
from pipelines.cluster.orphans import DRIVER_VARIABLE, end_orphans, end_own_processes, marked_processes
command = [sys.executable, "-c", "input()"]
with subprocess.Popen(command, stdin=subprocess.PIPE) as unmarked:
    with marked_processes():
        marked = subprocess.Popen(command, stdin=subprocess.PIPE)
    end_own_processes()
    assert marked.wait() < 0
    end_orphans()
    assert unmarked.poll() is None
    unmarked.communicate(b"\\n")
assert unmarked.returncode == 0
assert DRIVER_VARIABLE not in os.environ
"""


def test_only_processes_that_are_started_while_marking_are_ended() -> None:
    """In a process of its own: this one may be the driver of the tests' shared Ray."""
    subprocess.run([sys.executable, "-c", _BOTH], check=True, timeout=60)


def test_a_driver_of_another_pid_namespace_is_not_known_to_be_dead() -> None:
    """A host sees the processes of its containers, whose drivers have other PIDs there."""
    namespace, pid, started = process_identity(os.getpid()).split(":")
    identity = f"{int(namespace) + 1}:{pid}:{int(started) + 1}"
    with subprocess.Popen(
        [sys.executable, "-c", "input()"],
        env=os.environ | {DRIVER_VARIABLE: identity},
        stdin=subprocess.PIPE,
    ) as process:
        end_orphans()
        assert process.poll() is None
        process.communicate(b"\n")


@pytest.mark.cluster
def test_a_clean_end_leaves_no_process_of_ray_whatever_address_is_left_on_disk(
    start: Callable[..., Driver],
) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short, as the paths of sockets must be
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
        clean = start(_WITH_RAY, RAY_TMPDIR=folder)
        assert len(clean.processes()) > 3
        assert clean.end() == 0
        assert clean.processes() == set()


@pytest.mark.cluster
def test_the_ray_of_a_killed_driver_is_ended_by_the_next_command_and_that_of_a_living_one_is_not(
    start: Callable[..., Driver],
) -> None:
    killed, living = start(_WITH_RAY), start(_WITH_RAY)
    before = living.processes()
    assert len(before) > 3
    assert killed.child in killed.processes()
    killed.kill()  # a command that another test starts now may be the next one
    with Cluster(ClusterConfig(num_workers=0)):
        assert killed.processes() == set()
    assert living.processes() >= before
    assert living.end() == 0
    assert living.processes() == set()
