"""A training on a cluster that loses a machine and is given another goes on with what is there, to the same bits."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.cluster import Cluster
from pipelines.steps.train import TrainTask, train_stage
from tests.diffbfr.tiny import make_dataset
from tests.pipelines.steps.test_train import CONFIG, LOSES_A_MACHINE, PROJECT, STAGE, ending

IN_ORDER = replace(CONFIG, parts=2)
LOST, FOUND = 8, 16
"""Steps at which two ranks wait until they are one, and one until they are two."""

_DRIVER = """
import sys, threading, time
from pathlib import Path
import torch.distributed as dist
from ray.cluster_utils import Cluster as Nodes
from pipelines.cluster import Cluster, ClusterConfig, fit
from pipelines.steps.train import train_stage
from tests.pipelines.steps.test_train_elastic import FOUND, LOST, task_in

root, dataset = sys.argv[1:]
checkpoints, fit.RESIZE_S = Path(root, "run", "checkpoints"), 5.0

class Noting:
    def __init__(self, link):
        self.post, self.rest, self.history, self.beat = link.post, link.rest, link.history, link.alive
    def alive(self, step):
        self.beat(step)
        world = dist.get_world_size()
        if dist.get_rank() == 0:
            with Path(root, "worlds.txt").open("a") as file:
                file.write(f"{step} {world}\\n")
        while (world, step) in ((2, LOST), (1, FOUND)):
            time.sleep(0.1)
            self.beat(step)

def noting(task, link):
    return train_stage(task, Noting(link))

nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster = Cluster(ClusterConfig(num_workers=2, min_workers=1, address=nodes.address, cpus_per_worker=1))
cluster._start()  # on the head: any other machine may be lost
first, second = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
reports = []

def train():
    with cluster:
        task = task_in(str(Path(root, "run")), dataset)
        reports.append(cluster.train(noting, task, label="irm1", total=task.config.num_samples, root=root))

training = threading.Thread(target=train)
training.start()
def sealed(step):
    while not (checkpoints / f"step-{step:08d}" / "MANIFEST.json").exists():
        time.sleep(0.05)
sealed(LOST)
nodes.remove_node(second, allow_graceful=False)
sealed(FOUND)
nodes.add_node(num_cpus=1)
training.join()
Path(root, "report.txt").write_text(f"{reports[0].restarts} {reports[0].resumed_from}")
nodes.shutdown()
"""


def task_in(folder: str, dataset: str) -> TrainTask:
    return TrainTask(STAGE, IN_ORDER, dataset, folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as a worker has: kernels cut their sums by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@LOSES_A_MACHINE
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_workers_become_one_and_two_again_and_end_as_one_alone(tmp_path: Path, serial: Cluster) -> None:
    dataset, alone = str(tmp_path / "data"), str(tmp_path / "alone")
    make_dataset(tmp_path / "data")
    serial.train(train_stage, task_in(alone, dataset), label="irm1", total=IN_ORDER.num_samples, root=alone)
    command = [sys.executable, "-c", _DRIVER, str(tmp_path), dataset]
    subprocess.run(command, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.DEVNULL, check=True, timeout=500)
    rows = [line.split() for line in (tmp_path / "worlds.txt").read_text().splitlines()]
    worlds = [(int(world), [int(step) for step, _ in group]) for world, group in itertools.groupby(rows, key=lambda row: row[1])]
    assert worlds == [(2, [*range(1, 9)]), (1, [*range(9, 17)]), (2, [*range(17, 24)])]  # the last step is told by `rest`
    assert (tmp_path / "report.txt").read_text() == "2 16"
    assert ending(str(tmp_path / "run")) == ending(alone)
