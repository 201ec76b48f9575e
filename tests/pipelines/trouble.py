"""A training of two ranks that ends in seconds, what befalls it, and machines that come and go."""

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
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.progress import TrainingReporter
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
    """Keeps its checkpoints and its weights in a folder."""
    return TrainTask(STAGE, CONFIG, dataset, folder)


def ending(folder: str) -> dict[str, str]:
    """Digests of a training's end: model, average, optimiser, counters, weights; each checked against its
    file.
    """
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
    """After `step`, once, these ranks send themselves a signal."""

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
    """A training, its troubles, and a folder for marks: of each trouble that was, and of each attempt's
    first step.
    """

    task: TrainTask
    troubles: tuple[Trouble, ...]
    marks: str

    def begins(self) -> list[tuple[int, float]]:
        """Of each attempt: the step that it went on from, and when its first one was done."""
        marks = sorted(Path(self.marks).glob("begin-*"), key=lambda path: path.stat().st_mtime)
        return [(int(step), float(at)) for _, step, at in (mark.name.split("-") for mark in marks)]

    def struck(self) -> list[float]:
        """When each trouble was."""
        return [
            float(Path(self.marks, f"trouble-{trouble.step:02d}-{trouble.ranks[-1]}").read_text())
            for trouble in self.troubles
        ]


class OtherLink:
    """A link that does something of its own where a step is told."""

    def __init__(self, link: TrainingReporter) -> None:
        self.post, self.rest, self.restart_stats, self.beat = (
            link.report,
            link.finishing,
            link.restart_stats,
            link.heartbeat,
        )


class TroubledLink(OtherLink):
    """A link that brings trouble after a step, and marks when it came and when training goes on."""

    def __init__(self, link: TrainingReporter, troubled: Troubled) -> None:
        super().__init__(link)
        self._troubles, self._marks = troubled.troubles, Path(troubled.marks)
        self._checkpoints = Path(troubled.task.folder, "checkpoints")
        self._first = True

    def alive(self, step: int) -> None:
        import torch.distributed as dist

        self.beat(step)
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
                time.sleep(600)  # of a stopped one that goes on to tell where it is


def train_in_trouble(troubled: Troubled, link: TrainingReporter) -> TrainReport:
    """What every rank runs."""
    return train_stage(troubled.task, TroubledLink(link, troubled))


def driver(code: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a driver in a process of its own, which knows none of what the shared Ray has set in this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.DEVNULL
    )


class Machines:
    """A Ray of a head without cores and of two machines with a core each; the driver is on the head, so
    that either may be lost.
    """

    def __init__(self, **settings: Any) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._nodes: Any = Nodes(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.cluster = Cluster(
            ClusterConfig(num_workers=2, address=self._nodes.address, cpus_per_worker=1, **settings)
        )
        self.cluster._start()
        self._machines = [self._add(), self._add()]

    def lose(self) -> None:
        """Kill all that is on one of them."""
        self._nodes.remove_node(self._machines.pop(), allow_graceful=False)

    def find(self) -> None:
        """Start another."""
        self._machines.append(self._add())

    def end(self) -> None:
        """Of all of Ray's processes."""
        self._nodes.shutdown()

    def _add(self) -> Any:
        return self._nodes.add_node(num_cpus=1)


class Training:
    """A training on a thread beside what befalls it."""

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

    def sealed(self, step: int) -> None:
        """Wait for a checkpoint; an error if the training ends without."""
        while not (self._checkpoints / f"step-{step:08d}" / MANIFEST).exists():
            assert not self._future.done(), self._future.result()
            time.sleep(0.05)

    def report(self) -> TrainReport:
        """Wait for the end."""
        return self._future.result()
