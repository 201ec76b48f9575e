"""A Ray cluster of several hosts: nothing is shared but the bucket, and hosts come and go.

The hosts are namespaces of this machine (`hosts.py`), the bucket is a real one (`ceph.py`). Workers lack the
cascade of the package, and whatever else the driver has (weights, a detector, settings) lies in `/tmp` of the
head alone, so that what workers load came from the bucket.
"""

import io
import json
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from diffbfr.images import encode_png
from diffbfr.metrics.identity import MobileFaceNet
from diffbfr.synthetic import render_face
from pipelines import storage
from pipelines.dataset.manifest import read_ledger
from pipelines.flows.setup_faces import detectors_folder
from tests.infra.ceph import CephServer, ceph
from tests.infra.hosts import HOME, PROJECT, WEIGHTS, Network, network
from tests.infra.manifests import ROOT
from tests.infra.ray_hosts import Hosts
from tests.infra.smoke import FIXED_ORDER, contents, diffbfr, run_here, run_words
from tests.pipelines.evaluation.random_weights import write_random_weights

ASKED_FOR = "DIFFBFR_TEST_SERVICES"
NUM_FACES, NUM_MORE = 8, 24
LONGER = [
    "data.faces=synthetic:count=64,seed=0,px=128",
    "data.shard_size=4",
    "data.test_fraction=0.1",
    *(f"{stage}.training.num_samples=160" for stage in ("irm1", "irm2")),
]
DRIVER = "/tmp/driver"
"""A folder on the disk of the head, where the driver runs."""
BEFORE = "- MotionBlur: {blur_limit: [3, 5], p: 0.5}\n- ISONoise: {}\n"

pytestmark = [
    pytest.mark.skipif(not os.environ.get(ASKED_FOR), reason=f"takes many minutes; set {ASKED_FOR}=1"),
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
]


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


def photo(seed: int, num_faces: int) -> bytes:
    """A whole photo: faces beside each other before a wall, smaller than the cascade makes them."""
    scene = np.full((320, 200 * num_faces, 3), 120, np.uint8)
    for number in range(num_faces):
        place = scene[110:214, 48 + 200 * number : 152 + 200 * number]
        place[:] = cv2.resize(
            render_face(seed + number, 256).pixels, (104, 104), interpolation=cv2.INTER_AREA
        )
    return encode_png(scene)


def identity_weights() -> bytes:
    """Random weights for the identity cosine, which the project cannot pack."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in MobileFaceNet().state_dict().items()})
    return buffer.getvalue()


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


def num_done(step: str) -> int:
    """The shards, or the checkpoints, that a step has finished."""
    return len([path for path in below(step) if path.endswith((".tar", "MANIFEST.json"))])


def below(place: str) -> list[str]:
    """The keys below a place, as one listing has them: `storage.walk` wants two alike, and they change."""
    import boto3

    client: Any = boto3.client("s3")  # of the endpoint and the keys in the environment
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="diffbfr", Prefix=f"{place}/")
    keys = [row["Key"] for page in pages for row in page.get("Contents", ())]
    return [key for key in keys if ".diffbfr" not in key]


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
            *as_words(["data.faces=/tmp/driver/photos.zip"]),
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


def test_whole_photos_and_their_dataset_need_weights_on_the_drivers_disk_alone(
    hosts: Hosts, tmp_path: Path
) -> None:
    weights = detectors_folder() / "mtcnn.safetensors"
    if not weights.is_file():
        pytest.skip(f'no {weights}; "diffbfr setup faces" brings it')
    for number in range(4):
        storage.write_atomic(f"s3://diffbfr/photos/{number}.png", photo(10 * number, 1 + number % 2))
    on_head = f"{DRIVER}/mtcnn.safetensors"
    hosts.head.write(on_head, weights.read_bytes())
    write_random_weights(tmp_path)  # of the network that compares faces, among others
    for file in (tmp_path / "weights").iterdir():
        hosts.head.write(f"{HOME}/.cache/diffbfr/weights/{file.name}", file.read_bytes())
    joined = [f"cluster.address={hosts.ray_address}"]
    words = ["restore", "s3://diffbfr/photos"]
    whole = hosts.submit(
        *words,
        "s3://diffbfr/whole",
        *as_words([*joined, "restore.unit_size=1"]),
        DIFFBFR_FACE_DETECTOR=on_head,
    )
    assert whole.returncode == 0, whole.stdout[-3000:]
    local = {"DIFFBFR_FACE_DETECTOR": str(weights), "DIFFBFR_CACHE": str(tmp_path)}
    here = diffbfr([*words, "s3://diffbfr/whole-here"], local)
    assert here.returncode == 0, here.stderr
    assert ledger("s3://diffbfr/whole") == ledger("s3://diffbfr/whole-here")
    assert {status for status, _ in ledger("s3://diffbfr/whole").values()} == {"restored"}

    aligned = ["shard", "--recipe", "smoke", "--faces", "s3://diffbfr/photos"]
    settings = ["data.align=true", "data.max_enlargement=4", "data.val_fraction=0", "data.test_fraction=0"]
    places = [*joined, f"data.detector={on_head}", "tracking.uri=sqlite:////tmp/aligned.db"]
    done = hosts.submit(*aligned, "--root", "s3://diffbfr/aligned", *as_words([*settings, *places]))
    assert done.returncode == 0, done.stdout[-3000:]
    places = [f"data.detector={weights}", f"tracking.uri=sqlite:///{tmp_path}/aligned.db"]
    again = diffbfr([*aligned, "--root", "s3://diffbfr/aligned-here", *as_words([*settings, *places])])
    assert again.returncode == 0, again.stderr[-3000:]
    assert contents("s3://diffbfr/aligned") == contents("s3://diffbfr/aligned-here")


def test_a_run_through_lost_and_new_hosts_equals_one_machine(hosts: Hosts, tmp_path: Path) -> None:
    """In sharding and in training a host is cut off, another killed, and each time a new one joins.

    What the recipe takes from files lies on the driver's disk alone: a pipeline before Eq. 13, the initial
    weights, the weights of a metric.
    """
    mine = tmp_path / "driver"
    mine.mkdir()
    (mine / "before.yaml").write_text(BEFORE)
    (mine / "identity.npz").write_bytes(identity_weights())
    for file in mine.iterdir():
        hosts.head.write(f"{DRIVER}/{file.name}", file.read_bytes())
    hosts.head.run("cp", "-r", str(PROJECT / WEIGHTS), f"{DRIVER}/cascade")

    def settings(folder: str, cascade: str) -> list[str]:
        files = [f"data.degradation.before={folder}/before.yaml", f"evaluate.identity={folder}/identity.npz"]
        return [*LONGER, *FIXED_ORDER, *files, f"init={cascade}"]

    events: dict[str, float] = {}
    started = time.monotonic()

    def lose(how: str, step: str, after: int) -> None:
        wait_for(lambda: num_done(f"hosts/artifacts/{step}") >= after)
        late = any(path.endswith("record.json") for path in below(f"hosts/artifacts/{step}"))
        events[f"{how} in {step}{', too late' if late else ''}"] = round(time.monotonic() - started, 1)
        {"cut": hosts.cut, "killed": hosts.kill}[how]()

    def trouble() -> None:
        lose("cut", "shard", after=1)
        lose("killed", "shard", after=6)  # now nobody is left
        hosts.join()
        hosts.join()
        for how, step in (("cut", "train-irm1"), ("killed", "train-irm2")):
            lose(how, step, after=1)
            hosts.join()

    troubles = threading.Thread(target=trouble, daemon=True)
    troubles.start()
    words = settings(DRIVER, f"{DRIVER}/cascade")
    done = hosts.submit(
        *run_words("s3://diffbfr/hosts", "sqlite:////tmp/mlflow.db", [*words, *elastic(hosts)])
    )
    print(done.stdout[-2500:])
    assert done.returncode == 0, done.stdout[-5000:]
    troubles.join()
    print(json.dumps({"seconds": events, "run": round(time.monotonic() - started, 1)}))
    assert len(events) == 4
    assert not [name for name in events if "too late" in name]
    here = run_here("s3://diffbfr/here", tmp_path / "tracking", {}, settings(str(mine), str(ROOT / WEIGHTS)))
    assert here.returncode == 0, here.stderr[-3000:]
    assert contents("s3://diffbfr/hosts") == contents("s3://diffbfr/here")


def test_a_restore_through_lost_and_new_hosts_equals_one_machine(hosts: Hosts) -> None:
    def restored() -> int:
        return len([path for path in below("lost") if path.endswith(".png")])

    events: list[int] = []

    def trouble() -> None:
        for lose, count in ((hosts.cut, 1), (hosts.kill, 5)):
            wait_for(lambda count=count: restored() >= count)
            events.append(restored())
            lose()
        hosts.join()
        hosts.join()

    for seed in range(NUM_MORE):
        storage.write_atomic(f"s3://diffbfr/more/{seed:02}.png", face(100 + seed))
    troubles = threading.Thread(target=trouble, daemon=True)
    troubles.start()
    words = ["restore", "s3://diffbfr/more"]
    done = hosts.submit(
        *[*words, "s3://diffbfr/lost", "--aligned"], *as_words([*elastic(hosts), "restore.unit_size=1"])
    )
    assert done.returncode == 0, done.stdout[-3000:]
    troubles.join()
    print(json.dumps({"restored when a host was lost": events, "of": NUM_MORE}))
    assert len(events) == 2
    assert events[-1] < NUM_MORE
    here = diffbfr([*words, "s3://diffbfr/lost-here", "--aligned"])
    assert here.returncode == 0, here.stderr
    assert ledger("s3://diffbfr/lost") == ledger("s3://diffbfr/lost-here")


def test_two_workers_on_two_hosts_and_on_one(hosts: Hosts) -> None:
    """What a second host costs or brings: the same restoration with the same number of workers."""
    words = ["restore", "s3://diffbfr/faces"]
    settings = as_words([f"cluster.address={hosts.ray_address}", "restore.unit_size=2"])
    seconds: dict[str, float] = {}
    for name in ("two hosts", "one host"):
        if name == "one host":
            for host in hosts.alive:
                host.kill()
            hosts.join(cpus=2)
        started = time.monotonic()
        done = hosts.submit(*words, f"s3://diffbfr/{name.replace(' ', '-')}", "--aligned", *settings)
        seconds[name] = round(time.monotonic() - started, 1)
        assert done.returncode == 0, done.stdout[-3000:]
    print(json.dumps({"seconds of the same restoration by two workers": seconds}))
    assert ledger("s3://diffbfr/two-hosts") == ledger("s3://diffbfr/one-host")
