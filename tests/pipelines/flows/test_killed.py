"""kill -9 in the middle of each step, and of all of Ray; the same command ends with the same dataset,
weights and restored pictures.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from pipelines.execution.artifact_store import ArtifactStore
from tests import forks
from tests.pipelines.flows.pocket import run_pocket

_COMMAND = """
import sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from tests.pipelines.flows.pocket import pocket
from pipelines.flows import train_cascade
recipe, workers = pocket(num_samples={num_samples}), int(sys.argv[2])
if sys.argv[3:] == ["in order"]:
    stages = {{name: recipe.stage(name) for name in ("irm1", "irm2", "tem")}}
    recipe = replace(recipe, **{{name: replace(it, training=replace(it.training, reduce_leaves=2)) for name, it in stages.items()}})
train_cascade.run(replace(recipe, cluster=replace(recipe.cluster, num_workers=workers, cpus_per_worker=1)), sys.argv[1])
"""
NUM_SAMPLES = 96
"""Of each stage: twelve checkpoints, so that there is time between the first and the last."""
MIDDLES = {
    "shard": "artifacts/shard/*/commits/000000.json",
    "train-irm1": "artifacts/train-irm1/*/checkpoints/step-*",
    "train-tem": "artifacts/train-tem/*/checkpoints/step-*",
    "condition-irm1": "artifacts/shard/*/irm1-*/commits/*",
    "train-irm2": "artifacts/train-irm2/*/checkpoints/step-*",
    "restore": "artifacts/restore/*/archive.zip",
}
"""What is on disk when a step is under way."""


def start(root: Path, *words: str) -> subprocess.Popen[bytes]:
    project = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _COMMAND.format(tests=project, num_samples=NUM_SAMPLES),
            str(root),
            *(words or ("0",)),
        ],
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(root: Path, *words: str) -> None:
    run = start(root, *words)
    _, error = run.communicate(timeout=300)
    assert run.returncode == 0, error.decode()


def outcome(root: Path) -> dict[str, object]:
    store = ArtifactStore(str(root))
    metadata = {
        step: store.latest(step)
        for step in ("shard", "train-irm1", "train-tem", "train-irm2", "cascade", "restore")
    }
    assert all(metadata.values())
    restored = metadata["restore"]
    return {
        "content_id": metadata["shard"].metadata["content_id"],  # type: ignore[union-attr]
        **{
            step: metadata[step].metadata["digest"]
            for step in ("train-irm1", "train-tem", "train-irm2", "cascade")
        },  # type: ignore[union-attr]
        "pictures": {name: ref.sha256 for name, ref in restored.outputs.items() if name.endswith(".png")},  # type: ignore[union-attr]
    }


def run_forked(root: Path) -> ForkServerProcess:
    run = forks.process(run_pocket, str(root), NUM_SAMPLES)
    run.start()
    return run


def finish_forked(root: Path) -> None:
    run = run_forked(root)
    run.join(300)
    assert run.exitcode == 0


@pytest.mark.slow
def test_a_run_killed_in_every_step_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    finish_forked(calm)
    deaths = 0
    for step, middle in MIDDLES.items():
        run = run_forked(killed)
        deadline = time.monotonic() + 240
        while not any(killed.glob(middle)) and run.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if run.is_alive():
            run.kill()
            deaths += (
                not (killed / "artifacts" / step).exists() or ArtifactStore(str(killed)).latest(step) is None
            )
        run.join()
    assert deaths >= 4, "the run was hardly ever caught in the middle of a step"
    finish_forked(killed)
    assert outcome(killed) == outcome(calm)


def kill_all(run: subprocess.Popen[bytes]) -> int:
    """Kill a driver and all of the Ray that it started; returns how many processes there were."""
    killed = 0
    for place in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError):
            if os.getsid(int(place.name)) == run.pid:
                os.kill(int(place.name), signal.SIGKILL)
                killed += 1
    run.communicate()
    return killed


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_on_two_workers_whose_whole_ray_is_killed_ends_like_an_undisturbed_one_without_ray(
    tmp_path: Path,
) -> None:
    """Gradients are added in one order, so that one process and two workers train to the same bits."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    finish(calm, "0", "in order")
    run = start(killed, "2", "in order")
    while not any(killed.glob(MIDDLES["train-irm1"])):
        assert run.poll() is None
        time.sleep(0.01)
    assert kill_all(run) > 5
    assert ArtifactStore(str(killed)).latest("train-irm1") is None
    finish(killed, "2", "in order")
    assert outcome(killed) == outcome(calm)
