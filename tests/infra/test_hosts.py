"""A Ray cluster of several hosts: nothing is shared but the bucket, and hosts come and go.

The hosts are namespaces of this machine (`hosts.py`), the bucket is a real one (`ceph.py`). Workers lack the
cascade of the package, so that what they load came from the bucket.
"""

import io
import json
import os
import secrets
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from pipelines import storage
from pipelines.dataset.manifest import read_ledger
from pipelines.flows.setup_faces import detectors_folder
from tests.infra.ceph import CephServer, ceph
from tests.infra.hosts import Host, Network, network
from tests.infra.smoke import contents, diffbfr, run_here, run_words

ASKED_FOR = "DIFFBFR_TEST_SERVICES"
NUM_FACES = 8
FIXED_ORDER = [f"{stage}.training.reduce_leaves=2" for stage in ("irm1", "irm2", "tem")]
"""With it, weights do not depend on the number of ranks, which changes while hosts come and go."""
LONGER = [
    "data.shard_size=8",
    *(
        f"{stage}.training.{setting}"
        for stage in ("irm1", "tem")
        for setting in ("num_samples=48", "checkpoint_samples=8")
    ),
]

_STARTS = 3
"""A raylet ends if its agent is not there within its time; on a busy machine that happens."""

pytestmark = [
    pytest.mark.skipif(not os.environ.get(ASKED_FOR), reason=f"takes many minutes; set {ASKED_FOR}=1"),
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
]


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

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:6379"

    def join(self, cpus: int = 1) -> Host:
        """Start another worker."""
        host = self._add(f"worker{len(self.workers)}", weights=False)
        self._start_ray(host, [f"--address={self.ray_address}", f"--num-cpus={cpus}"])
        self.workers.append(host)
        return host

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product as a job; its driver is a process of the head."""
        job = ["ray", "job", "submit", "--address", f"http://{self.head.address}:8265", "--"]
        return self.head.run(*job, "diffbfr", *words, check=False, timeout=1500)

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


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def server(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """The bucket, with faces below `faces` and the same in an archive; the tests use it too."""
    with ceph(tmp_path_factory.mktemp("ceph"), net.address) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        for seed in range(NUM_FACES):
            storage.write_atomic(f"s3://diffbfr/faces/{seed:02}.png", face(seed))
        yield running


@pytest.fixture(scope="module")
def hosts(net: Network, server: CephServer) -> Hosts:
    made = Hosts(net, server)
    made.join()
    made.join()
    return made


def face(seed: int) -> bytes:
    return encode_png(render_face(seed, 64).pixels)


def ledger(output: str) -> dict[str, tuple[str, str]]:
    """Status and digest of each input's output."""
    rows = read_ledger(storage.join(output, "ledger.parquet"))
    return {row.name: (row.status, row.output_sha256) for row in rows}


def wait_for(found: Callable[[], Any], seconds: float = 600) -> float:
    """Wait until something is there; returns the time."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return time.monotonic()


def below(place: str) -> list[str]:
    return [entry.path for entry in storage.walk(f"s3://diffbfr/{place}") if ".diffbfr" not in entry.path]


def elastic(hosts: Hosts) -> list[str]:
    return [f"cluster.address={hosts.ray_address}", "cluster.min_workers=1"]


def as_words(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_the_first_face_comes_soon_and_no_worker_needs_the_drivers_disk(hosts: Hosts) -> None:
    words = ["restore", "s3://diffbfr/faces", "s3://diffbfr/first", "--aligned"]
    done: list[subprocess.CompletedProcess[str]] = []
    job = threading.Thread(
        target=lambda: done.append(
            hosts.submit(*words, *as_words([f"cluster.address={hosts.ray_address}", "restore.unit_size=1"]))
        )
    )
    job.start()
    seconds = wait_for(lambda: [path for path in below("first") if path.endswith(".png")]) - hosts.started
    job.join()
    assert done[0].returncode == 0, done[0].stdout[-3000:]
    here = diffbfr([*words[:2], "s3://diffbfr/first-here", "--aligned", "--set", "restore.unit_size=2"])
    assert here.returncode == 0, here.stderr
    assert ledger("s3://diffbfr/first") == ledger("s3://diffbfr/first-here")
    print(json.dumps({"seconds from ray start to the first face": round(seconds, 1)}))


def test_the_doctor_finds_every_node_fit_and_a_lost_token(hosts: Hosts) -> None:
    places = ["--root", "s3://diffbfr/doctor", "--set", "tracking.uri=sqlite:////tmp/doctor.db"]
    found = hosts.head.run("diffbfr", "doctor", "--address", hosts.ray_address, *places, check=False)
    print(found.stdout, found.stderr)
    assert found.returncode == 0
    for host in hosts.workers:
        assert host.address in found.stdout
    assert "create once, put in parts, delete (If-None-Match)" in found.stdout
    assert "asks for a token, and so does its dashboard" in found.stdout
    without = hosts.head.run(
        *["env", "-u", "RAY_AUTH_MODE", "diffbfr", "doctor", "--address", hosts.ray_address, *places],
        check=False,
    )
    print(without.stdout, without.stderr)
    assert without.returncode == 1
    assert "refuses this process" in without.stdout
    assert "set RAY_AUTH_MODE=token" in without.stdout


def test_photos_and_outputs_on_the_drivers_disk_are_one_line_and_blame_no_photo(hosts: Hosts) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for seed in range(4):
            archive.writestr(f"{seed}.png", face(seed))
    hosts.head.write("/tmp/driver/photos.zip", buffer.getvalue())
    settings = as_words([f"cluster.address={hosts.ray_address}"])
    refused = {
        "/tmp/driver/photos.zip is not there as on the driver": [
            "restore", "/tmp/driver/photos.zip", "s3://diffbfr/refused", "--aligned", *settings
        ],
        "/tmp/driver/out is on the driver's disk alone": [
            "restore", "s3://diffbfr/faces", "/tmp/driver/out", "--aligned", *settings
        ],
        "photos.zip is not there": [
            *run_words("s3://diffbfr/refused-run", "sqlite:////tmp/mlflow.db", elastic(hosts)),
            "--faces", "/tmp/driver/photos.zip",
        ],
        "/tmp/driver/root is on the driver's disk alone": run_words(
            "/tmp/driver/root", "sqlite:////tmp/mlflow.db", elastic(hosts)
        ),
    }  # fmt: skip
    for says, words in refused.items():
        done = hosts.head.run("diffbfr", *words, check=False)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert says in done.stderr.splitlines()[-1], done.stderr
        assert "2 of 2 nodes cannot work" in done.stderr
    assert not [path for path in below("refused") if path.endswith((".png", ".parquet"))]


def test_a_detector_and_whole_photos(hosts: Hosts) -> None:
    """The detector lies on the head's disk alone."""
    weights = detectors_folder() / "mtcnn.safetensors"
    if not weights.is_file():
        pytest.skip(f'no {weights}; "diffbfr setup faces" brings it')
    hosts.head.write("/tmp/driver/mtcnn.safetensors", weights.read_bytes())
    source = ["restore", "s3://diffbfr/faces"]
    on_hosts = hosts.head.run(
        *["env", "DIFFBFR_FACE_DETECTOR=/tmp/driver/mtcnn.safetensors", "diffbfr", *source],
        *["s3://diffbfr/whole", *as_words([f"cluster.address={hosts.ray_address}"])],
        check=False,
    )
    assert on_hosts.returncode == 0, on_hosts.stderr
    here = diffbfr([*source, "s3://diffbfr/whole-here"], {"DIFFBFR_FACE_DETECTOR": str(weights)})
    assert here.returncode == 0, here.stderr
    assert ledger("s3://diffbfr/whole") == ledger("s3://diffbfr/whole-here")
    assert len(ledger("s3://diffbfr/whole")) == NUM_FACES


def test_a_run_through_lost_and_new_hosts_equals_one_machine(hosts: Hosts, tmp_path: Path) -> None:
    """In sharding a host is killed, in training another is cut off, and each time a new one joins."""
    one, two = hosts.workers[0], hosts.workers[1]
    events: dict[str, float] = {}

    def trouble() -> None:
        wait_for(lambda: below("hosts/artifacts/shard"))
        one.kill()
        events["killed while sharding"] = time.monotonic()
        hosts.join()
        wait_for(lambda: [path for path in below("hosts/artifacts/train-irm1") if "checkpoints" in path])
        two.cut()
        events["cut off while training"] = time.monotonic()
        hosts.join()

    settings = [*LONGER, *FIXED_ORDER]
    started = time.monotonic()
    troubles = threading.Thread(target=trouble)
    troubles.start()
    done = hosts.submit(
        *run_words("s3://diffbfr/hosts", "sqlite:////tmp/mlflow.db", [*settings, *elastic(hosts)])
    )
    troubles.join()
    print(json.dumps({name: round(at - started, 1) for name, at in events.items()}))
    print(round(time.monotonic() - started, 1), done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-5000:]
    here = run_here("s3://diffbfr/here", tmp_path / "tracking", {}, settings)
    assert here.returncode == 0, here.stderr[-3000:]
    assert contents("s3://diffbfr/hosts") == contents("s3://diffbfr/here")


def test_a_restore_through_a_lost_and_a_new_host_equals_one_machine(hosts: Hosts) -> None:
    alive = hosts.workers[-2:]

    def trouble() -> None:
        wait_for(lambda: [path for path in below("lost") if path.endswith(".png")])
        alive[0].kill()
        hosts.join()

    troubles = threading.Thread(target=trouble)
    troubles.start()
    words = ["restore", "s3://diffbfr/faces", "s3://diffbfr/lost", "--aligned", "--mode", "fast"]
    done = hosts.submit(*words, *as_words([*elastic(hosts), "restore.unit_size=1"]))
    troubles.join()
    assert done.returncode == 0, done.stdout[-3000:]
    assert ledger("s3://diffbfr/lost") == ledger("s3://diffbfr/first-here")


def test_two_workers_on_two_hosts_and_on_one(hosts: Hosts) -> None:
    """What a second host costs or brings: the same restoration with the same number of workers."""
    words = ["restore", "s3://diffbfr/faces"]
    settings = as_words([f"cluster.address={hosts.ray_address}", "restore.unit_size=2"])
    seconds: dict[str, float] = {}
    for name in ("two hosts", "one host"):
        if name == "one host":
            for host in hosts.workers:
                host.kill()
            hosts.join(cpus=2)
        started = time.monotonic()
        done = hosts.submit(*words, f"s3://diffbfr/{name.replace(' ', '-')}", "--aligned", *settings)
        seconds[name] = round(time.monotonic() - started, 1)
        assert done.returncode == 0, done.stdout[-3000:]
    print(json.dumps({"seconds of the same restoration by two workers": seconds}))
    assert ledger("s3://diffbfr/two-hosts") == ledger("s3://diffbfr/one-host")
