"""A Ray cluster on hosts of this machine (`hosts.py`), with a token, whose hosts are lost and join."""

import json
import secrets
import subprocess
import time

from tests.infra.ceph import CephServer
from tests.infra.hosts import Host, Network

_STARTS = 3
"""A raylet ends if its agent is not there within its time; on a busy machine that happens."""


class Hosts:
    """A head without work, and workers of one CPU; every process shows a token."""

    def __init__(self, net: Network, server: CephServer) -> None:
        self._net, self._server = net, server
        self._token = secrets.token_hex(32).encode()
        self.started = time.monotonic()
        self.head = self._add("head", weights=True)
        words = ["--head", "--port=6379", f"--dashboard-host={self.head.address}", "--num-cpus=0"]
        self._start_ray(self.head, words)
        self.workers: list[Host] = []
        self.lost: list[Host] = []

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:6379"

    def join(self, cpus: int = 1) -> Host:
        """Start another worker."""
        host = self._add(f"worker{len(self.workers)}", weights=False)
        self._start_ray(host, [f"--address={self.ray_address}", f"--num-cpus={cpus}"])
        self.workers.append(host)
        return host

    @property
    def alive(self) -> list[Host]:
        """The workers that were neither killed nor cut off, in the order in which they joined."""
        return [host for host in self.workers if host not in self.lost]

    def kill(self) -> None:
        """Lose the first worker as if its power was gone."""
        self.lost.append(self.alive[0])
        self.lost[-1].kill()

    def cut(self) -> None:
        """Lose the first worker as if its cable was pulled."""
        self.lost.append(self.alive[0])
        self.lost[-1].cut()

    def submit(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product as a job; its driver is a process of the head."""
        job = ["ray", "job", "submit", "--address", f"http://{self.head.address}:8265"]
        environment = ["--runtime-env-json", json.dumps({"env_vars": variables})] if variables else []
        return self.head.run(*job, *environment, "--", "diffbfr", *words, check=False, timeout=1500)

    def _add(self, name: str, weights: bool) -> Host:
        environment = {
            **self._server.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": "/tmp/token",
            "DIFFBFR_FACE_DETECTOR": "",
            # of a machine that is busy, and is several hosts at once
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_raylet_start_wait_time_s": "300",
            "RAY_worker_niceness": "0",
        }
        host = self._net.add(name, environment, weights)
        host.write("/tmp/token", self._token)
        return host

    def _start_ray(self, host: Host, words: list[str]) -> None:
        usual = [f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
        for _ in range(_STARTS):
            if host.run("ray", "start", *usual, *words, "--disable-usage-stats", check=False).returncode == 0:
                return
            host.run("ray", "stop", "--force", check=False)
        raise AssertionError(f"Ray does not start on {host.name}")
