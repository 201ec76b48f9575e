"""Several hosts on this machine: each with its own address, processes, `/tmp`, shared memory and home.

A host is a set of namespaces (network, mounts, processes, name) that lives as long as its first process. Hosts
see each other and this machine through a bridge. What they have in common is the program, mounted at the same
place in each, as an image would bring it, and none of them can write there or anywhere else on this machine's
disks: a file can pass from one to another through the bucket alone. Linux, root, iproute2 and util-linux are
needed.
"""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.infra.manifests import ROOT

PROGRAMS = ("ip", "unshare", "nsenter", "mount")
PROJECT = Path("/mnt/project")
WEIGHTS = "diffbfr/weights/tiny"
HOME = "/tmp/home"
BIN = Path(sys.prefix).resolve() / "bin"
_START_S = 60.0

_SET_UP = """
set -e
hostname {name}
mount -t tmpfs tmpfs /mnt
mkdir {project} /mnt/empty
mount --bind {root} {project}
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mkdir -p {home}
{more}
mount -o remount,bind,ro {project}
mount -o remount,bind,ro /
ip link set lo up
exec cat
"""


@dataclass(eq=False)
class Host:
    """One host; `pid` is its first process, with which all of its processes end."""

    name: str
    address: str
    pid: int
    link: str
    environment: Mapping[str, str]
    _holder: subprocess.Popen[bytes]

    def run(self, *words: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end."""
        done = subprocess.run(
            self._enter(words), env=self._full(), capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{self.name}: {words}: {done.stdout}{done.stderr}"
        return done

    def start(self, *words: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a command on the host; its output goes to a file of this machine."""
        with log.open("ab") as file:
            return subprocess.Popen(self._enter(words), env=self._full(), stdout=file, stderr=file)

    def write(self, path: str, content: bytes, mode: int = 0o600) -> None:
        """Write a file on the host."""
        quoted = shlex.quote(path)
        words = ["sh", "-c", f"mkdir -p $(dirname {quoted}) && cat > {quoted} && chmod {mode:o} {quoted}"]
        subprocess.run(self._enter(words), env=self._full(), input=content, check=True)

    def cut(self) -> None:
        """Take the host off the network, as if its cable was pulled."""
        _ip("link", "set", self.link, "down")

    def kill(self) -> None:
        """End every process of the host at once, as if its power was gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.wait(30)

    def _enter(self, words: Sequence[str]) -> list[str]:
        spaces = ["--mount", "--uts", "--net", "--pid"]
        there = ["sh", "-c", f'cd {PROJECT} && exec "$@"', "sh"]
        return ["nsenter", f"--target={self.pid}", *spaces, "--", *there, *words]

    def _full(self) -> dict[str, str]:
        own = {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": HOME,
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        return {**own, **self.environment}


@dataclass(eq=False)
class Network:
    """A bridge of this machine at `.1`, and the hosts that are joined to it."""

    bridge: str
    prefix: str
    hosts: list[Host] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address of this machine on the bridge: for servers that all hosts reach."""
        return f"{self.prefix}.1"

    def add(self, name: str, environment: Mapping[str, str], weights: bool = True) -> Host:
        """Start a host; without `weights` it lacks the cascade of the package."""
        number = len(self.hosts) + 2
        more = "" if weights else f"mount --bind /mnt/empty {PROJECT / WEIGHTS}"
        script = _SET_UP.format(name=name, home=HOME, project=PROJECT, root=shlex.quote(str(ROOT)), more=more)
        spaces = ["--mount", "--propagation=private", "--uts", "--net", "--pid", "--fork", "--mount-proc"]
        words = ["unshare", *spaces, "--kill-child", "sh", "-c", script]
        # its first process reads from here, and ends with this one however that ends
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        pid = _first_child(holder.pid)
        link, inner = f"{self.bridge}{number}", f"{self.bridge}i{number}"
        _ip("link", "add", link, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", str(pid))
        _ip("link", "set", link, "master", self.bridge, "up")
        host = Host(name, f"{self.prefix}.{number}", pid, link, environment, holder)
        self.hosts.append(host)
        deadline = time.monotonic() + _START_S
        while host.run("cat", "/proc/1/comm", check=False).stdout != "cat\n":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        host.run("ip", "link", "set", inner, "name", "eth0")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", self.address)
        return host


@contextmanager
def network() -> Iterator[Network]:
    """A network of its own; skips the test where namespaces cannot be made."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {missing[0]} (Debian: iproute2, util-linux)")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("namespaces need root, and a kernel or container that allows them")
    digits = secrets.token_hex(2)
    found = Network(f"db{digits}", f"10.{int(digits[:2], 16)}.{int(digits[2:], 16)}")
    _ip("link", "add", found.bridge, "type", "bridge")
    try:
        _ip("address", "add", f"{found.address}/24", "dev", found.bridge)
        _ip("link", "set", found.bridge, "up")
        yield found
    finally:
        for host in found.hosts:
            host.kill()
        for host in found.hosts:
            _ip("link", "del", host.link, check=False)
        _ip("link", "del", found.bridge, check=False)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def _first_child(process: int) -> int:
    """The process that `unshare --fork` started, the first of its namespace."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            if children:
                return int(children[0])
        time.sleep(0.02)
    raise AssertionError("unshare started no process")
