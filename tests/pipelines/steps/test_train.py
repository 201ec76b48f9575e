"""A training survives kills, hangs, lost machines and failed uploads, and ends with the same digests."""

import json
import os
import platform
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diffbfr.checkpoint import MANIFEST
from diffbfr.training.loop import Run
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.protocol import Metrics
from pipelines.dataset.manifest import open_dataset
from pipelines.steps.train import TrainReport, train_stage
from tests.diffbfr.tiny import make_dataset
from tests.diffbfr.training.ranks import train_in_processes
from tests.pipelines.faulty_s3 import Fault, faulty
from tests.pipelines.trouble import (
    CONFIG,
    EVERY,
    STAGE,
    TROUBLES,
    Troubled,
    driver,
    ending,
    task_in,
    train_in_trouble,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty procedural faces at 32 and 8 px."""
    root = tmp_path_factory.mktemp("dataset") / "data"
    make_dataset(root)
    return str(root)


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of two ranks without Ray, to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_in_processes([[Run(STAGE, CONFIG, open_dataset(dataset), folder / "run")] * 2], folder / "meeting")
    return ending(str(folder / "run"))


# On Ray


@pytest.mark.cluster
@pytest.mark.slow
def test_a_worker_killed_then_all_then_one_terminated_then_one_stopped_change_nothing(
    cluster: Cluster,
    dataset: str,
    undisturbed: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only steps since the newest checkpoint are lost, each step is reported once, the hang is detected.

    Each failure is one line of ours; Ray writes nothing to standard output.
    """
    marks = tmp_path / "marks"
    marks.mkdir()
    posts: list[Metrics] = []
    folder = str(tmp_path / "run")
    watched = Cluster(replace(cluster.config, hang_s=5.0))
    troubled = Troubled(task_in(folder, dataset), TROUBLES, str(marks))
    report = watched.train(
        train_in_trouble,
        troubled,
        label="irm1",
        total=CONFIG.num_samples,
        root=str(tmp_path / "root"),
        on_metrics=posts.append,
    )
    (hang,) = [record for record in caplog.records if record.name == "pipelines.cluster.watchdog"]
    assert ending(folder) == undisturbed
    resumed = [step for step, _ in troubled.begins()]
    assert resumed == [0, *(trouble.step // EVERY * EVERY for trouble in TROUBLES)]
    assert (report.resumed_from, report.restarts) == (resumed[-1], len(TROUBLES))
    assert 0 < report.goodput < 1
    steps = [metrics.step for metrics in posts]
    assert steps == sorted(set(steps))
    assert not list((tmp_path / "root" / "ray").iterdir())

    assert not capsys.readouterr().out
    lines = [record.getMessage() for record in caplog.records if record.name == "pipelines.cluster.trainer"]
    assert [re.sub("[01] and 1|[01]", "N", line.replace("irm1", "irm")) for line in lines] == [
        "irm: worker N died (killed, or its machine was lost); all workers go on from the newest checkpoint"
    ] * len(TROUBLES)
    assert lines[0].startswith("irm1: worker 1 died")

    message = hang.getMessage()
    assert "irm1: no rank has given a sign for 5 s" in message
    first, second = message.split("rank 1, process ")
    assert ": T (stopped), in " in second
    assert all(
        "in train_in_trouble" in stacks for stacks in (first, second)
    )  # also of the one that was stopped
    (kept,) = (tmp_path / "root" / "hangs").iterdir()
    assert message.endswith(kept.read_text())


_DRIVER = """
import sys, time
from pathlib import Path
from pipelines.steps.train import train_stage
from tests.pipelines.trouble import Machines, Training, WrappedReporter, task_in

root, dataset, loses_a_machine = sys.argv[1], sys.argv[2], sys.argv[3] == "loses a machine"

class Slow(WrappedReporter):
    def heartbeat(self, step):
        super().heartbeat(step)
        # ranks whose driver is killed run on for some seconds, and must not reach the end
        time.sleep(0.1 if loses_a_machine else 0.8)

machines = Machines()
worker = lambda task, reporter: train_stage(task, Slow(reporter))
training = Training(machines.cluster, worker, task_in(f"{root}/run", dataset))
if loses_a_machine:
    training.wait_for_checkpoint(16)
    machines.lose()
    time.sleep(5)  # nothing to train on
    machines.add()
report = training.report()
Path(root, "report.txt").write_text(f"{report.restarts} {report.resumed_from}")
machines.end()
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_driver_then_a_machine_that_is_lost_and_another_that_is_found_change_nothing(
    dataset: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    with driver(_DRIVER, str(tmp_path), dataset, "is killed") as killed:
        while not (checkpoints / "step-00000008").exists():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
    time.sleep(3)  # until the machines of its own have followed it
    assert not (checkpoints / f"step-{CONFIG.num_steps:08d}").exists()
    with driver(_DRIVER, str(tmp_path), dataset, "loses a machine") as running:
        assert running.wait(timeout=500) == 0
    restarts, resumed_from = map(int, (tmp_path / "report.txt").read_text().split())
    assert (restarts, resumed_from) in ((1, 16), (1, 20))
    assert ending(str(tmp_path / "run")) == undisturbed


# In this process


@pytest.fixture(scope="module")
def alone(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of one process, on disk, to which nothing happens."""
    folder = str(tmp_path_factory.mktemp("alone"))
    Cluster(ClusterConfig(num_workers=0)).train(
        train_stage, task_in(folder, dataset), label="irm1", total=CONFIG.num_samples, root=folder
    )
    return ending(folder)


_SLOW_TRAINING = """
import sys, time
from pipelines.cluster.monitor import LocalReporter
from pipelines.steps.train import train_stage
from tests.pipelines.trouble import task_in

class Slow(LocalReporter):
    def heartbeat(self, step):
        time.sleep(0.1)  # it is terminated before its last step, however busy the machine is

train_stage(task_in(*sys.argv[1:]), Slow(print))
"""


@pytest.mark.slow
def test_a_terminated_driver_is_followed_by_the_same_command(
    dataset: str, alone: dict[str, str], tmp_path: Path, serial: Cluster
) -> None:
    folder = str(tmp_path / "run")
    with driver(_SLOW_TRAINING, folder, dataset) as running:
        while not (tmp_path / "run" / "checkpoints" / "step-00000004").exists():
            assert running.poll() is None
            time.sleep(0.005)
        running.terminate()
    assert running.returncode == -signal.SIGTERM
    assert not (tmp_path / "run" / "checkpoints" / f"step-{CONFIG.num_steps:08d}").exists()
    report = serial.train(
        train_stage, task_in(folder, dataset), label="irm1", total=CONFIG.num_samples, root=folder
    )
    assert 4 <= report.resumed_from < CONFIG.num_steps
    assert report.restarts == 0
    assert ending(folder) == alone


@pytest.mark.slow
def test_on_s3_a_refused_part_loses_nothing_and_the_end_is_that_on_disk(
    dataset: str,
    alone: dict[str, str],
    s3_bucket: str,
    tmp_path: Path,
    serial: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server refuses the parts of one checkpoint (411, as a real one did); a rerun goes on before it.

    The error line says where the checkpoint is kept; nothing of it stays there once it is uploaded.
    """
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 16_384)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 256)
    monkeypatch.setenv("DIFFBFR_CACHE", str(tmp_path / "cache"))
    folder = f"{s3_bucket}/failed-{tmp_path.name}/run"
    refusing = True

    def choose(method: str, path: str) -> Fault | None:
        return (
            "411"
            if refusing and method == "PUT" and "step-00000012/" in path and "partNumber=" in path
            else None
        )

    def run() -> TrainReport:
        return serial.train(
            train_stage, task_in(folder, dataset), label="irm1", total=CONFIG.num_samples, root=folder
        )

    with faulty(os.environ["AWS_ENDPOINT_URL"], choose) as (endpoint, made):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(
            storage.StorageError,
            match=rf"step-00000012 could not be stored .* it is kept on {platform.node()} in .*; run",
        ) as failed:
            run()
        assert made
        kept = Path(
            failed.value.args[0].partition(f"it is kept on {platform.node()} in ")[2].partition(";")[0]
        )
        assert json.loads((kept / MANIFEST).read_text()) == {
            file.name: storage.digest(file) for file in kept.iterdir() if file.name != MANIFEST
        }
        steps = storage.list_dir(f"{folder}/checkpoints")
        assert [step for step in steps if storage.exists(f"{folder}/checkpoints/{step}/{MANIFEST}")] == [
            "step-00000004",
            "step-00000008",
        ]
        refusing = False
        assert run().resumed_from == 8
    assert [path.suffix for path in kept.parents[2].rglob("*") if path.is_file()] == [".lock"]
    assert ending(folder) == alone
    assert storage.list_dir(f"{folder}/checkpoints") == ["step-00000020", "step-00000024"]
