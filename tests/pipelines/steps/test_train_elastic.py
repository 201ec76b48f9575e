"""A training on a cluster that loses a machine and gets another runs on what is there, to the same bits."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cluster import Cluster
from pipelines.steps.train import TrainTask, train_stage
from tests.diffbfr.tiny import make_dataset
from tests.pipelines.trouble import CONFIG, STAGE, driver, ending

IN_ORDER = replace(CONFIG, reduce_leaves=2)
LOST, FOUND = 8, 16
"""Steps at which two ranks wait until they are one, and one until they are two."""

_DRIVER = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from pipelines.cluster import trainer
from pipelines.steps.train import train_stage
from tests.pipelines.steps.test_train_elastic import FOUND, LOST, task_in
from tests.pipelines.trouble import Machines, Training, WrappedReporter

root, dataset = sys.argv[1:]
trainer.RESIZE_S = 5.0

class Recording(WrappedReporter):
    def heartbeat(self, step):
        super().heartbeat(step)
        world = dist.get_world_size()
        if dist.get_rank() == 0:
            with Path(root, "worlds.txt").open("a") as file:
                file.write(f"{step} {world}\\n")
        while (world, step) in ((2, LOST), (1, FOUND)):
            time.sleep(0.1)
            super().heartbeat(step)

machines = Machines(min_workers=1)
worker = lambda task, reporter: train_stage(task, Recording(reporter))
training = Training(machines.cluster, worker, task_in(f"{root}/run", dataset))
training.wait_for_checkpoint(LOST)
machines.lose()
training.wait_for_checkpoint(FOUND)
machines.add()
report = training.report()
Path(root, "report.txt").write_text(f"{report.restarts} {report.resumed_from}")
machines.end()
"""


def task_in(folder: str, dataset: str) -> TrainTask:
    return TrainTask(STAGE, IN_ORDER, dataset, folder)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_workers_become_one_and_two_again_and_end_as_one_alone(tmp_path: Path, serial: Cluster) -> None:
    dataset, alone = str(tmp_path / "data"), str(tmp_path / "alone")
    make_dataset(tmp_path / "data")
    serial.train(train_stage, task_in(alone, dataset), label="irm1", total=IN_ORDER.num_samples, root=alone)
    with driver(_DRIVER, str(tmp_path), dataset) as running:
        assert running.wait(timeout=500) == 0
    rows = [line.split() for line in (tmp_path / "worlds.txt").read_text().splitlines()]
    worlds = [
        (int(world), [int(step) for step, _ in group])
        for world, group in itertools.groupby(rows, key=lambda row: row[1])
    ]
    assert worlds == [
        (2, [*range(1, 9)]),
        (1, [*range(9, 17)]),
        (2, [*range(17, 24)]),
    ]  # the last step is reported by `finishing`
    assert (tmp_path / "report.txt").read_text() == "2 16"
    assert ending(str(tmp_path / "run")) == ending(alone)
