"""What a training costs beside its steps: Ray and torchrun, checkpoints, data, and the order of sums.

`.venv/bin/python -m tests.benchmarks.training` prints tables about IRM-1 of the recipe tiny, on two workers
with a thread each, and about how long the stages of `small` wait for their data, on one; it needs an idle
machine. `--steps` and `--rounds` make it shorter, `--only` selects tables.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffbfr.training.batches import PositionLoader
from diffbfr.training.config import TrainingConfig
from diffbfr.training.loop import Run, StepMetrics, train
from diffbfr.training.train_step import TrainStep
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.monitor import LocalReporter
from pipelines.cluster.protocol import Metrics, TrainingReporter
from pipelines.dataset.manifest import open_dataset
from pipelines.recipes.presets import small, tiny
from pipelines.steps.train import TrainReport, TrainTask, train_stage
from tests.benchmarks.harness import environment, ratio
from tests.diffbfr.tiny import COLUMN, add_column
from tests.pipelines.tiny_dataset import CONFIG, build

TABLES = ("ray", "checkpoints", "data", "parts")
_WARM_UP = 10
_WORKERS = 2
_NEVER = 10**9


@dataclass(frozen=True)
class Timed:
    """A training, and the file that rank 0 writes its times to."""

    task: TrainTask
    times: str


class TimingReporter:
    """A reporter that records when each step was done, and how long reporting took."""

    def __init__(self, reporter: TrainingReporter) -> None:
        self._reporter = reporter
        self.finishing = reporter.finishing
        self.restart_stats = reporter.restart_stats
        self.done: list[float] = []
        self.reporting_s: list[float] = []
        self.reported: list[Metrics] = []

    def report(self, metrics: Metrics) -> None:
        started = time.perf_counter()
        self._reporter.report(metrics)
        self.reporting_s.append(time.perf_counter() - started)
        self.reported.append(metrics)

    def heartbeat(self, step: int) -> None:
        started = time.perf_counter()
        self._reporter.heartbeat(step)
        self.done.append(time.perf_counter())
        self.reporting_s.append(self.done[-1] - started)


def timed(work: Timed, reporter: TrainingReporter) -> TrainReport:
    """Train, and write seconds per step and per report, and means of the loop's metrics.

    Both ways of starting ranks run this.
    """
    torch.set_num_threads(1)
    timing = TimingReporter(reporter)
    report = train_stage(work.task, timing)
    if int(os.environ.get("RANK", "0")) == 0:
        reported = [metrics.values for metrics in timing.reported]
        facts = {
            "step_s": (timing.done[-1] - timing.done[_WARM_UP]) / (len(timing.done) - 1 - _WARM_UP),
            "reporting_ms": 1e3 * sum(timing.reporting_s) / len(timing.done),
            **{
                name: statistics.mean(values[name] for values in reported)
                for name in ("images_per_s", "data_share", "write_share")
            },
        }
        Path(work.times).write_text(
            json.dumps(facts | {name: asdict(report)[name] for name in ("restarts", "goodput")})
        )
    return report


def beside_torchrun(folder: Path, data: str, config: TrainingConfig, rounds: int) -> None:
    """The same ranks, loop and data, started by Ray and by torchrun, in turns."""
    found: dict[str, list[dict[str, float]]] = {"ray": [], "torchrun": []}
    with Cluster(ClusterConfig(num_workers=_WORKERS, cpus_per_worker=1)) as cluster:
        for number in range(rounds):
            for name in random.Random(number).sample(list(found), 2):
                place = folder / f"{name}-{number}"
                place.mkdir()
                work = Timed(
                    TrainTask(tiny().irm1.stage.trained, config, data, str(place)), str(place / "times.json")
                )
                if name == "ray":
                    cluster.train(timed, work, label=name, total=config.num_samples, root=str(place))
                else:
                    _torchrun(work, place)
                found[name].append(json.loads(Path(work.times).read_text()))
    for name, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        waits = f"waits for data {median['data_share']:.2%}, for the writer {median['write_share']:.2%}"
        print(
            f"{name:10} {1e3 * median['step_s']:7.1f} ms a step  {median['images_per_s']:6.1f} img/s  {waits}"
            f"  reporting {median['reporting_ms']:.3f} ms a step  restarts {median['restarts']:.0f}  goodput "
            f"{median['goodput']:.2f}"
        )
    steps = {name: [row["step_s"] for row in rows] for name, rows in found.items()}
    print(f"ray over torchrun: {ratio(steps['ray'], steps['torchrun'])} times a step")


def _torchrun(work: Timed, place: Path) -> None:
    (place / "work.json").write_text(
        json.dumps({"data": work.task.dataset, "config": asdict(work.task.config)})
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(_WORKERS),
    ]
    subprocess.run(
        [*command, "-m", "tests.benchmarks.training", "--rank", str(place)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def rank(place: Path) -> None:
    """One of torchrun's ranks."""
    given = json.loads((place / "work.json").read_text())
    config = TrainingConfig(**given["config"] | {"ema_lengths": ()})
    torch.distributed.init_process_group("gloo")
    timed(
        Timed(
            TrainTask(tiny().irm1.stage.trained, config, given["data"], str(place)), str(place / "times.json")
        ),
        LocalReporter(lambda metrics: None),
    )
    torch.distributed.destroy_process_group()


def checkpoints(folder: Path, data: str, config: TrainingConfig, rounds: int) -> None:
    """Compare one process with a checkpoint every 20 steps to one with none but the last.

    The last is written after the last step.
    """
    torch.set_num_threads(1)
    every = {"without": _NEVER, "with": 20 * config.global_batch}
    seconds: dict[str, list[float]] = {name: [] for name in every}
    shares = []
    for number in range(rounds):
        for name in random.Random(number).sample(list(every), 2):
            place = folder / f"{name}-{number}"
            place.mkdir()
            settings = replace(config, checkpoint_samples=every[name])
            timed(
                Timed(
                    TrainTask(tiny().irm1.stage.trained, settings, data, str(place)),
                    str(place / "times.json"),
                ),
                LocalReporter(lambda metrics: None),
            )
            facts = json.loads((place / "times.json").read_text())
            seconds[name].append(facts["step_s"])
            shares += [facts["write_share"]] if name == "with" else []
    print(
        f"checkpoints: {ratio(seconds['with'], seconds['without'])} times a step; the step waits for them "
        f"{statistics.median(shares):.2%}"
    )


def waits(folder: Path, steps: int) -> None:
    """Print how long each stage of `small` waits for its batches, on one thread with half of a batch."""
    torch.set_num_threads(1)
    shards = replace(
        CONFIG, hq_px=256, lq_px=64, variants=1, shard_size=16, val_fraction=0.0, test_fraction=0.0
    )
    build("synthetic:count=32,seed=0,px=256", folder, shards)
    dataset = add_column(folder)
    for name in ("irm1", "irm2", "tem"):
        stage = small().stage(name)
        batch = stage.training.global_batch // _WORKERS
        config = replace(
            stage.training,
            num_samples=steps * batch,
            global_batch=batch,
            warmup_samples=0,
            decay_samples=0,
            checkpoint_samples=_NEVER,
        )
        reports: list[StepMetrics] = []
        column = COLUMN if name == "irm2" else None
        train(
            Run(stage.stage.trained, config, dataset, folder / name, column=column),
            report=reports.append,
            report_every_s=0,
        )
        seconds = [batch / metrics.images_per_s for metrics in reports[_WARM_UP:]]
        waited = sum(
            metrics.data_share * second for metrics, second in zip(reports[_WARM_UP:], seconds, strict=True)
        )
        print(
            f"{name:5} waits for data {waited / sum(seconds):.2%} of a step of "
            f"{1e3 * statistics.mean(seconds):.0f} ms"
        )


def parts(data: str, rounds: int) -> None:
    """Processor time of a step whose gradients are added in one order, on one worker with all parts."""
    torch.set_num_threads(1)
    for name in ("irm1", "tem"):
        config = tiny().stage(name)
        batch = next(PositionLoader(open_dataset(data), config.stage, config.training, None).batches())
        train_steps = {
            count: TrainStep(config.stage, replace(config.training, reduce_leaves=count))
            for count in (None, 2, 4)
        }
        spent: dict[int | None, list[float]] = {count: [] for count in train_steps}
        for number in range(rounds + 1):
            for count in random.Random(number).sample(list(train_steps), 3):
                started = time.process_time()
                train_steps[count].step(batch, number)
                if number:
                    spent[count].append(time.process_time() - started)
        ratios = "  ".join(f"reduce_leaves={count} {ratio(spent[count], spent[None])}" for count in (2, 4))
        print(f"{name}, a step of {1e3 * statistics.median(spent[None]):.0f} ms: {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=TABLES, nargs="+", default=TABLES)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        rank(given.rank)
        return
    if given.steps < _WARM_UP + 3:
        parser.error(
            f"--steps {given.steps}; expected at least {_WARM_UP + 3}, of which {_WARM_UP} warm up and the "
            "last is not timed"
        )
    training = tiny().irm1.training
    config = replace(
        training,
        num_samples=given.steps * training.global_batch,
        warmup_samples=0,
        decay_samples=0,
        checkpoint_samples=_NEVER,
    )
    print(environment(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        data = str(Path(name) / "data")
        shards = replace(
            CONFIG, hq_px=128, lq_px=32, variants=1, shard_size=16, val_fraction=0.0, test_fraction=0.0
        )
        build("synthetic:count=64,seed=0,px=128", data, shards)
        if "ray" in given.only:
            beside_torchrun(Path(name), data, config, given.rounds)
        if "checkpoints" in given.only:
            checkpoints(Path(name), data, config, given.rounds)
        if "data" in given.only:
            waits(Path(name) / "small", given.steps)
        if "parts" in given.only:
            parts(data, 3 * given.rounds)


if __name__ == "__main__":
    main()
