"""What the chain costs beside its arithmetic: the column beside the bare sampler, tracking beside the steps,
also while its server is away.

`.venv/bin/python -m tests.benchmarks.chain` prints it all; the packaged IRM-1 makes the column of 16
procedural faces. `--actors 1 2` makes it on so many Ray actors too, and tells the wall time; `--outage-s 60`
keeps the tracking server away for a minute.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffbfr.cascade import packaged_cascade, sample
from diffbfr.checkpoint import load_stage
from diffbfr.images import lq_to_model, to_tensor
from diffbfr.keys import noise_key
from pipelines import storage
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.protocol import Metrics
from pipelines.dataset.manifest import open_dataset
from pipelines.execution.artifact_store import ArtifactStore, Identity, Record
from pipelines.execution.dag import Step, StepOutput
from pipelines.recipes.presets import smoke
from pipelines.recipes.recipe import TrackingConfig
from pipelines.steps.condition import ConditionTask, make_conditioner, plan_condition
from pipelines.tracking.connection import open_registry
from pipelines.tracking.metrics_log import MetricsLog
from pipelines.tracking.mirror import MlflowMirror
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.runs import find_step
from tests.pipelines.registry.line import Line
from tests.pipelines.registry.mlflow_server import mlflow_server
from tests.pipelines.tiny_dataset import CONFIG, build

FACES, SHARD = 16, 4
WORK_PX = 192
"""Side of the matrices that stand for a step: a few milliseconds."""


def column_tasks(folder: Path) -> list[ConditionTask]:
    """Procedural faces in four shards, and the tasks of their column."""
    build(
        f"synthetic:count={FACES},seed=0,px=128",
        folder,
        replace(CONFIG, hq_px=128, lq_px=32, variants=1, shard_size=SHARD),
    )
    stage = load_stage(packaged_cascade(), "irm1")
    template = ConditionTask(
        0, str(folder), "irm1-bench", (), 1, stage.spec, str(packaged_cascade()), "d" * 64
    )
    return plan_condition(template)


def column(tasks: Sequence[ConditionTask], rounds: int) -> None:
    """Print the processor time of the step beside that of the sampler alone, on the same pictures,
    interleaved.
    """
    dataset, stage = open_dataset(tasks[0].dataset), load_stage(packaged_cascade(), "irm1")
    stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = []
    for task in tasks:
        x_0 = to_tensor([lq_to_model(dataset.lq(key, 0), 32) for key in task.keys])
        inputs.append(
            (x_0, [noise_key(hashlib.sha256(dataset.lq_bytes(key, 0)).hexdigest()) for key in task.keys])
        )
    worker, ratios = make_conditioner(tasks[0]), []
    for round_ in range(rounds + 1):
        storage.remove_tree(storage.join(tasks[0].dataset, tasks[0].column))
        bare = _processor_s(
            lambda: [sample(stage, keys, "fast", start_image=None, condition=x_0) for x_0, keys in inputs]
        )
        whole = _processor_s(lambda: [worker(task) for task in tasks])
        if round_:  # the first opens files and plans kernels
            ratios.append(whole / bare)
    print(
        f"column: {statistics.median(ratios):.3f} times the bare sampler ({min(ratios):.3f} to "
        f"{max(ratios):.3f})"
    )


def actors(tasks: Sequence[ConditionTask], num_actors: int) -> None:
    """Print the wall time on so many actors of one core, from the start of Ray on and once they are there."""
    with Cluster(ClusterConfig(num_workers=num_actors, cpus_per_worker=1)) as cluster:
        for name in ("with their start", "again"):
            storage.remove_tree(storage.join(tasks[0].dataset, tasks[0].column))
            started = time.perf_counter()
            cluster.map_actors(
                partial(make_conditioner, tasks[0]), tasks, label="condition", unit="img", one_core=True
            )
            print(f"{num_actors} actors {name}: {time.perf_counter() - started:.1f} s for {FACES} pictures")


def posts(folder: Path, count: int) -> None:
    """Print what a post costs the thread that trains, with a server that answers and one that is away."""

    def away() -> None:
        raise ConnectionError

    arms: tuple[tuple[str, Callable[[], None] | None], ...] = (
        ("warming up", None),
        ("no tracking", None),
        ("a server that answers", lambda: None),
        ("a server that is away", away),
    )
    for name, call in arms:
        outbox = Outbox(pause_s=0.1)

        def hear(posts: object, call: Callable[[], None] | None = call, outbox: Outbox = outbox) -> None:
            if call is not None:
                outbox.enqueue(call)

        with MetricsLog(str(folder / f"{name}.json"), hear, every_s=0.2) as log:
            longest, began = 0.0, time.thread_time()
            for step in range(1, count + 1):
                started = time.thread_time()
                log.add(Metrics(step, step, {"loss": 0.5, "images_per_s": 10.0, "data_share": 0.0}))
                longest = max(longest, time.thread_time() - started)
            mean = (time.thread_time() - began) / count
        print(f"{name}: {1e6 * mean:.1f} us a post, at most {1e3 * longest:.3f} ms")
        outbox.close(0.0)


def outage(folder: Path, away_s: float) -> None:
    """Print what becomes of the points and the steps of a run whose MLflow server is away for the middle
    third of it.
    """
    store = ArtifactStore(str(folder / "root"))
    step = Step(Identity("train-irm1", {}, {}, {}), lambda folder: StepOutput({}, {}), str)
    place = storage.join(store.artifact_dir(step.identity), "metrics.json")
    times: dict[str, list[float]] = {"before": [], "away": [], "after": []}
    with mlflow_server(folder, str(folder / "files")) as server:
        line = Line(int(server.rpartition(":")[2]))
        tracking = TrackingConfig(uri=f"http://127.0.0.1:{line.port}")
        with MlflowMirror(replace(smoke(), tracking=tracking), store, close_s=60.0).following(
            [step], "plan"
        ) as mirror:

            def make() -> Record:
                count = 0
                with MetricsLog(
                    place, partial(mirror.log_metrics, step.name), every_s=min(10.0, away_s / 4)
                ) as log:
                    for phase, act in (("before", lambda: None), ("away", line.cut), ("after", line.mend)):
                        act()
                        until = time.perf_counter() + away_s
                        while time.perf_counter() < until:
                            count += 1
                            times[phase].append(_step_s(log, count))
                return store.commit(step.identity, {"metrics": "metrics.json"}, {}, 1.0)

            mirror.track_step(step, make, store.artifact_dir(step.identity))
        registry = open_registry(store.root, server)
        run = find_step(registry, store.root, step.name, step.id)
        told = (
            Counter(metric.step for metric in registry.client.get_metric_history(run.run_id, "loss"))
            if run is not None
            else Counter()
        )
    wanted = sum(map(len, times.values()))
    print(
        f"away for {away_s:g} s: {wanted} points, {wanted - len(told)} lost, {told.total() - len(told)} "
        "doubled"
    )
    told_ms = ", ".join(f"{1e3 * statistics.median(each):.3f} ms {phase}" for phase, each in times.items())
    print(f"a step takes {told_ms} (medians of processor time)")


def _step_s(log: MetricsLog, number: int) -> float:
    """Processor time of the training's thread for a step that computes a little and posts."""
    work = np.ones((WORK_PX, WORK_PX))
    started = time.thread_time()
    for _ in range(8):
        work = work @ work / WORK_PX
    log.add(Metrics(number, number, {"loss": float(work[0, 0]) / number, "images_per_s": 10.0}))
    return time.thread_time() - started


def _processor_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--actors", type=int, nargs="*", default=[], help="make the column on so many Ray actors, too"
    )
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument(
        "--outage-s",
        type=float,
        default=5.0,
        help="how long the server is away, and how long it is there before and after",
    )
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        tasks = column_tasks(Path(name, "data"))
        column(tasks, words.rounds)
        for number in words.actors:
            actors(tasks, number)
        posts(Path(name), words.posts)
        outage(Path(name), words.outage_s)


if __name__ == "__main__":
    main()
