"""Every command of every manifest runs, on a Ray cluster that the batch script of Slurm starts.

Slurm itself is two doubles: `srun` runs its command here, `scontrol` names one host. All else is real:
Ray's head and worker with a token, an S3 server (moto), an MLflow server. The recipe is smoke with fewer
faces and steps.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffbfr.images import encode_png
from diffbfr.synthetic import render_face
from pipelines.cluster.metrics import NAMES
from tests.infra.manifests import INFRA, ROOT, entrypoints
from tests.pipelines.conftest import _s3_server as _s3_server  # a fixture
from tests.pipelines.registry.mlflow_server import mlflow_server

ASKED_FOR = "DIFFBFR_TEST_ENTRYPOINTS"
SMALLER = [
    "data.faces=synthetic:count=24,seed=0,px=128",
    "data.shard_size=12",
    "data.variants=1",
    "data.val_fraction=0",
    "data.test_fraction=0.2",
    "evaluate.max_faces=2",
    "evaluate.num_panels=1",
    "restore.num_photos=1",
    *(
        f"{stage}.training.{setting}"
        for stage in ("irm1", "irm2", "tem")
        for setting in ("num_samples=16", "checkpoint_samples=8", "warmup_samples=0", "decay_samples=0")
    ),
]
FAKES = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    "scontrol": "[ \"$1 $2\" = 'show hostnames' ] && echo 127.0.0.1\n",
}
NOT_SEEN_IN_A_RUN_WITHOUT_TROUBLE = {"diffbfr_tasks_failed", "diffbfr_worker_deaths"}


def commands(root: Path, tracking: str) -> list[tuple[str, list[str]]]:
    """Each different command once, with the places of this machine, in an order in which each has what it
    needs."""
    settings = [word for setting in SMALLER for word in ("--set", setting)]
    different: dict[tuple[str, ...], str] = {}
    for found in entrypoints():
        words = [_moved(word, root, tracking) for word in found.words]
        if found.where != "docker/Dockerfile":
            words = [*_without_address(words), "--set", "cluster.address=auto"]
        different.setdefault((*words, *settings), found.where)
    runs = [(where, list(words)) for words, where in different.items()]
    runs.sort(key=lambda run: (run[1][1] == "restore", run[0] == "docker/Dockerfile"))
    places = ["--root", "s3://diffbfr/smoke", "--tracking", tracking]
    promotion = ("promote", ["diffbfr", "models", "promote", *places])
    first = next(i for i, (_, words) in enumerate(runs) if words[1] == "restore")
    image = [run for run in runs if run[0] == "docker/Dockerfile"]  # a Ray of its own, so the order is free
    return [*(run for run in runs[:first] if run not in image), promotion, *runs[first:], *image]


def _moved(word: str, root: Path, tracking: str) -> str:
    if word == "/data":
        return str(root / "data")
    return word.replace("http://mlflow:5000", tracking)


def _without_address(words: list[str]) -> list[str]:
    """The batch script gives the address last, the others somewhere else."""
    for i, word in enumerate(words):
        if word.startswith("cluster.address="):
            return [*words[: i - 1], *words[i + 1 :]]
    return words


@pytest.fixture
def bucket(_s3_server: dict[str, str]) -> dict[str, str]:
    """The bucket of the manifests with an archive of two faces in it, and the environment that leads
    there."""
    import boto3

    client: Any = boto3.client(
        "s3",
        endpoint_url=_s3_server["AWS_ENDPOINT_URL"],
        aws_access_key_id=_s3_server["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=_s3_server["AWS_SECRET_ACCESS_KEY"],
        region_name=_s3_server["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket="diffbfr")
    for seed in range(2):
        client.put_object(
            Bucket="diffbfr", Key=f"archive/{seed}.png", Body=encode_png(render_face(seed, 64).pixels)
        )
    return _s3_server


@pytest.mark.skipif(
    not os.environ.get(ASKED_FOR), reason=f"takes ten minutes and more; set {ASKED_FOR}=1 to run it"
)
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_every_entrypoint_runs_on_the_cluster_of_the_batch_script(
    tmp_path: Path, bucket: dict[str, str]
) -> None:
    for name, body in FAKES.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / "bin" / name).chmod(0o755)
    job = os.getpid()
    environment = {
        **os.environ,
        **bucket,
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / ("x" * 120)),  # longer than a socket's path may be
        "DIFFBFR_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "this",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
    }
    with mlflow_server(tmp_path, str(tmp_path / "artifacts")) as tracking:
        (tmp_path / "commands.json").write_text(json.dumps(commands(tmp_path, tracking)))
        driver = [sys.executable, "-m", "tests.infra.run_entrypoints", str(tmp_path)]
        done = subprocess.run(
            ["bash", str(INFRA / "slurm/diffbfr.sbatch"), *driver],
            env=environment,
            capture_output=True,
            text=True,
            timeout=3500,
            cwd=tmp_path,
        )
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == len(commands(tmp_path, tracking))
    failed = {where: result for where, result in results.items() if result["code"]}
    assert failed == {}, done.stderr[-3000:]
    assert done.returncode == 0
    assert "2" in results["kuberay/overlays/restore"]["output"][0], "both faces are restored"

    exported = {f"ray_{name}{'_total' if kind == 'counter' else ''}" for name, (kind, _, _) in NAMES.items()}
    unseen = {f"ray_{name}_total" for name in NOT_SEEN_IN_A_RUN_WITHOUT_TROUBLE}
    assert set(json.loads((tmp_path / "metrics.json").read_text())) >= exported - unseen

    assert not Path(f"/tmp/ray-{job}").exists(), "the script removes its folder"
    assert not list(tmp_path.glob(".diffbfr-ray-*")), "and the token"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
