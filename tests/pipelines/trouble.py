"""A training of two ranks that takes seconds, failures to inject into it, and machines that come and go."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffbfr.checkpoint import MANIFEST
from diffbfr.training.config import TrainingConfig
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig, orphans
from pipelines.cluster.protocol import Metrics, RestartStats, TrainingReporter
from pipelines.steps.train import TrainReport, TrainTask, train_stage
from tests.diffbfr.tiny import TINY_STAGES

PROJECT = Path(__file__).parents[2]
STAGE = replace(TINY_STAGES["irm1"], unet=replace(TINY_STAGES["irm1"].unet, dropout=0.3)).trained
EVERY = 4
"""Steps between checkpoints."""
CONFIG = TrainingConfig(
    num_samples=96,
    global_batch=4,
    learning_rate=2e-3,
    checkpoint_samples=4 * EVERY,
    ema_half_life=20.0,
    seed=1,
)


def task_in(folder: str, dataset: str) -> TrainTask:
    """The training, with checkpoints and weights in a folder."""
    return TrainTask(STAGE, CONFIG, dataset, folder)


def ending(folder: str) -> dict[str, str]:
    """Digests of a finished training: model, average, optimizer, counters, weights; the files are checked."""
    last = storage.join(folder, "checkpoints", f"step-{CONFIG.num_steps:08d}")
    digests: dict[str, str] = storage.read_json(storage.join(last, MANIFEST))
    assert digests == {
        name: storage.digest(storage.join(last, name)) for name in storage.list_dir(last) if name != MANIFEST
    }
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"} <= digests.keys()
    return digests | {
        name: storage.digest(storage.join(folder, name)) for name in ("irm1.safetensors", "irm1.json")
    }


@dataclass(frozen=True)
class Trouble:
    """After `step`, these ranks send themselves a signal, once."""

    step: int
    ranks: tuple[int, ...]
    signal: int


TROUBLES = (
    Trouble(6, (1,), signal.SIGKILL),
    Trouble(10, (0, 1), signal.SIGKILL),
    Trouble(15, (0,), signal.SIGTERM),
    Trouble(18, (1,), signal.SIGSTOP),
)


@dataclass(frozen=True)
class Troubled:
    """A training, its troubles, and a folder of marks: of each trouble and of each attempt's first step."""

    task: TrainTask
    troubles: tuple[Trouble, ...]
    marks: str

    def begins(self) -> list[tuple[int, float]]:
        """The step that each attempt went on from, and the time at which its first step was done."""
        marks = sorted(Path(self.marks).glob("begin-*"), key=lambda path: path.stat().st_mtime)
        return [(int(step), float(at)) for _, step, at in (mark.name.split("-") for mark in marks)]

    def struck(self) -> list[float]:
        """The time of each trouble."""
        return [
            float(Path(self.marks, f"trouble-{trouble.step:02d}-{trouble.ranks[-1]}").read_text())
            for trouble in self.troubles
        ]


class WrappedReporter:
    """A reporter that passes everything on; subclasses do something of their own at a heartbeat."""

    def __init__(self, reporter: TrainingReporter) -> None:
        self._reporter = reporter

    def report(self, metrics: Metrics) -> None:
        self._reporter.report(metrics)

    def heartbeat(self, step: int) -> None:
        self._reporter.heartbeat(step)

    def finishing(self) -> None:
        self._reporter.finishing()

    def restart_stats(self) -> RestartStats:
        return self._reporter.restart_stats()


class TroubledReporter(WrappedReporter):
    """A reporter that makes trouble after a step, and marks when it came and when training goes on."""

    def __init__(self, reporter: TrainingReporter, troubled: Troubled) -> None:
        super().__init__(reporter)
        self._troubles, self._marks = troubled.troubles, Path(troubled.marks)
        self._checkpoints = Path(troubled.task.folder, "checkpoints")
        self._first = True

    def heartbeat(self, step: int) -> None:
        import torch.distributed as dist

        super().heartbeat(step)
        rank = dist.get_rank()
        if self._first and rank == 0:
            (self._marks / f"begin-{step - 1:02d}-{time.time()}").touch()
        self._first = False
        for trouble in self._troubles:
            mark = self._marks / f"trouble-{trouble.step:02d}-{rank}"
            if step == trouble.step and rank in trouble.ranks and not mark.exists():
                while not (
                    self._checkpoints / f"step-{step // EVERY * EVERY:08d}"
                ).exists():  # it is written on a thread
                    time.sleep(0.01)
                mark.write_text(str(time.time()))
                os.kill(os.getpid(), trouble.signal)
                time.sleep(600)  # a stopped process is continued, to write its stacks


def train_in_trouble(troubled: Troubled, reporter: TrainingReporter) -> TrainReport:
    """The function that every rank runs."""
    return train_stage(troubled.task, TroubledReporter(reporter, troubled))


def driver(code: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a driver in a process without the variables that the shared Ray has set in this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.DEVNULL
    )


class Machines:
    """A Ray of a head without cores, where the driver runs, and of two machines with a core each.

    For a program of its own: `end` ends every Ray that its process has started.
    """

    def __init__(self, **settings: Any) -> None:
        from ray.cluster_utils import Cluster as Nodes

        with orphans.marked_processes():
            head = {"num_cpus": 0, "include_dashboard": False}
            self._nodes: Any = Nodes(initialize_head=True, head_node_args=head)
        self.cluster = Cluster(
            ClusterConfig(num_workers=2, address=self._nodes.address, cpus_per_worker=1, **settings)
        )
        self.cluster.start()  # on the head, before there is another machine
        self._machines = [self._add(), self._add()]

    def lose(self) -> None:
        """Kill everything on one of the machines."""
        self._nodes.remove_node(self._machines.pop(), allow_graceful=False)

    def add(self) -> None:
        """Start another machine."""
        self._machines.append(self._add())

    def end(self) -> None:
        """End every process of this Ray."""
        self._nodes.shutdown()
        orphans.end_own_processes()

    def _add(self) -> Any:
        with orphans.marked_processes():
            return self._nodes.add_node(num_cpus=1)


class Training:
    """A training on a thread."""

    def __init__(
        self, cluster: Cluster, worker: Callable[[TrainTask, TrainingReporter], TrainReport], task: TrainTask
    ) -> None:
        def train() -> TrainReport:
            with cluster:
                return cluster.train(
                    worker, task, label="irm1", total=task.config.num_samples, root=task.folder
                )

        self._checkpoints = Path(task.folder, "checkpoints")
        self._future = ThreadPoolExecutor(1).submit(train)

    def wait_for_checkpoint(self, step: int) -> None:
        """Wait until a checkpoint is complete; an error if the training ends without it."""
        while not (self._checkpoints / f"step-{step:08d}" / MANIFEST).exists():
            assert not self._future.done(), self._future.result()
            time.sleep(0.05)

    def report(self) -> TrainReport:
        """Wait for the end of the training."""
        return self._future.result()
