"""`Cluster` runs work; Ray is started on first use and stopped when the context ends."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from diffbfr.errors import UsageError
from pipelines.cluster import exposure, orphans, pool, trainer
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.draining import Draining
from pipelines.cluster.hangs import HangWatch
from pipelines.cluster.joining import join_ray
from pipelines.cluster.metrics import MetricsExporter
from pipelines.cluster.monitor import LocalReporter
from pipelines.cluster.nodes import NodeReport, run_here, run_on_nodes
from pipelines.cluster.own_ray import OwnRay
from pipelines.cluster.private_folder import remove_dead_folders
from pipelines.cluster.protocol import Metrics, TrainingReporter
from pipelines.progress import Progress
from pipelines.storage import machine

Task = TypeVar("Task")
Report = TypeVar("Report")
Config = TypeVar("Config")

_SETTINGS = {
    # On shared cores, threads that spin at barriers would take the cores from each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A task that asks for no GPU sees none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Ray's messages about workers that died would go to standard output, which may be read as JSON.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # A call of Ray's API in a process without Ray fails; otherwise it would join or start one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ranks keep the driver's working directory, so that relative paths mean the same.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Workers have the same code already: with `uv run`, Ray would upload the working folder to them.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # How soon a rank that died is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ranks that find no room within this time are requested again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default Ray retries a task for ever that does not fit into memory.
    "RAY_task_oom_retries": str(pool.NUM_WORKER_DEATHS),
}
_OWN_RAY_SETTINGS = {  # nobody reads the metrics of a Ray of our own; without them its processes idle cheaper
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
}
_ELASTIC_SETTINGS = {
    # Ranks whose machine is lost are not waited for where fewer will do.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}


class Cluster:
    """Runs tasks and trainings on the configured workers; a context manager that stops its Ray.

    `num_workers=0` runs the same without Ray, with the same results. A task that fails stops no other; those
    that failed are named in an IncompleteError at the end. A UsageError or QuarantineError of a task stops
    the work and is raised as itself. A worker that dies (killed, out of memory, machine lost) is replaced and
    its task retried, up to three times on actors and twenty times otherwise; a task that a network failed is
    retried three times. Methods may be called from several threads at once.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._own_ray: OwnRay | None = None
        self._joined_ray = False
        self._start_lock = threading.Lock()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        orphans.end_orphans()
        remove_dead_folders(orphans.is_dead)
        if self.config.num_workers == 0:
            _limit_threads()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own_ray is not None:
            self._own_ray.stop()
            self._own_ray = None
        elif self._joined_ray:
            import ray

            ray.shutdown()
        self._joined_ray = False

    def fraction_needed(self, num_parallel: int = 1) -> float:
        """The fraction of the cluster that work on `num_workers` takes if `num_parallel` such works share it.

        1 in this process.
        """
        workers = self.config.num_workers
        if workers == 0:
            return 1.0
        self.start()
        gpus = int(self._resource("GPU"))
        gpu_fraction = min(workers, gpus) / gpus if gpus else 0.0
        cpus = workers * self._cpus_per_worker(workers, num_parallel)
        return max(gpu_fraction, cpus / self._resource("CPU"))

    def exposure(self) -> tuple[bool, str]:
        """Whether other users and machines are kept out of the Ray that runs the work, and by what."""
        if self.config.num_workers == 0:
            return True, "no Ray: nothing listens"
        self.start()
        if self.config.address is not None:
            return exposure.describe_joined(self.config.address)
        return exposure.describe_own()

    @property
    def is_joined(self) -> bool:
        """True if the work runs on a cluster that is joined, whose nodes may have disks of their own."""
        return self.config.num_workers > 0 and self.config.address is not None

    def on_each_node(self, function: Callable[[Task], Report], task: Task) -> list[NodeReport[Report]]:
        """Run the function once on every node that takes work; one that fails is a report, not an error."""
        if self.config.num_workers == 0:
            return run_here(function, task)
        self.start()
        return run_on_nodes(function, task, self._check)

    def stop(self) -> None:
        """End the work of other threads by a KeyboardInterrupt; Ctrl-C reaches only the main thread."""
        self._stopping.set()

    def _check(self) -> None:
        """KeyboardInterrupt if this work is to stop, IncompleteError if a Ray of our own has died."""
        if self._stopping.is_set():
            raise KeyboardInterrupt
        if self._own_ray is not None:
            self._own_ray.processes.check()

    def map(
        self,
        function: Callable[[Task], Report],
        tasks: Sequence[Task],
        *,
        label: str,
        unit: str = "items",
        weight: Callable[[Task], int] = lambda task: 1,
        on_report: Callable[[Report], None] | None = None,
    ) -> list[Report]:
        """Run `function` on every task, at most `num_workers` at once; reports in the order of the tasks.

        `on_report` is called in the driver as each task ends. `weight` is how many `unit`s a task adds to the
        progress line.
        """
        total = sum(weight(task) for task in tasks)
        with Progress(label, total, unit) as progress:
            collector = pool.Collector(label, tasks, weight, progress, on_report, self._exporter(label))
            self._run_tasks(function, collector, len(tasks))
        return collector.reports()

    def for_each(
        self,
        function: Callable[[Task], Report],
        tasks: Iterable[Task],
        on_report: Callable[[Report], pool.Facts | None],
        *,
        label: str,
        total: int,
        unit: str = "items",
        weight: Callable[[Task], int] = lambda task: 1,
    ) -> None:
        """Like `map` for tasks that are made as they are begun, and whose reports are not kept.

        `on_report` is called in the driver as each task ends, in this order; what it returns is shown on the
        progress line. `total` is the sum of the weights. The first Ctrl-C ends the tasks, and the work when
        those that were begun have ended.
        """
        with Progress(label, total, unit) as progress, Draining() as draining:
            collector = self._streaming(label, tasks, weight, progress, on_report, draining)
            self._run_tasks(function, collector, total)
        draining.check()
        collector.check()

    def for_each_on_actors(
        self,
        factory: Callable[[], Callable[[Task], Report]],
        tasks: Iterable[Task],
        on_report: Callable[[Report], pool.Facts | None],
        *,
        label: str,
        total: int,
        num_tasks: int,
        unit: str = "items",
        weight: Callable[[Task], int] = lambda task: 1,
        one_core: bool = False,
    ) -> None:
        """Like `for_each`, on actors as of `map_actors`; there are no more actors than `num_tasks`."""
        with Progress(label, total, unit) as progress, Draining() as draining:
            collector = self._streaming(label, tasks, weight, progress, on_report, draining)
            self._run_actors(factory, collector, num_tasks, one_core=one_core)
        draining.check()
        collector.check()

    def _streaming(
        self,
        label: str,
        tasks: Iterable[Task],
        weight: Callable[[Task], int],
        progress: Progress,
        on_report: Callable[[Report], pool.Facts | None],
        draining: Draining,
    ) -> "pool.Collector[Task, Report]":
        until = draining.until_requested(iter(tasks))
        return pool.Collector(label, until, weight, progress, on_report, self._exporter(label), keep=False)

    def _run_tasks(
        self, function: Callable[[Task], Report], collector: "pool.Collector[Task, Report]", num_tasks: int
    ) -> None:
        retrying = partial(pool.with_retries, function)
        if self.config.num_workers == 0:
            pool.run_serially(retrying, collector)
        elif num_tasks:
            self.start()
            with self._hang_watch(collector.label) as watch:
                pool.run_tasks(retrying, collector, self.config.num_workers, self._check, watch)

    def _run_actors(
        self,
        factory: Callable[[], Callable[[Task], Report]],
        collector: "pool.Collector[Task, Report]",
        num_tasks: int,
        one_core: bool,
    ) -> None:
        if self.config.num_workers == 0:
            pool.run_serially(pool.Worker(factory).run, collector)
        elif num_tasks:
            self.start()
            workers, gpus = self._num_workers_with_room(), int(self._resource("GPU"))
            on_one_core = one_core and not gpus
            num_actors = self._num_one_core_actors(workers) if on_one_core else workers
            num_actors = min(num_actors, num_tasks)
            cpus = 1 if on_one_core else self._cpus_per_worker(num_actors)
            gpu_share = pool.gpu_share(num_actors, gpus)
            with self._hang_watch(collector.label) as watch:
                pool.run_actors(factory, collector, num_actors, cpus, gpu_share, self._check, watch)

    def map_actors(
        self,
        factory: Callable[[], Callable[[Task], Report]],
        tasks: Sequence[Task],
        *,
        label: str,
        unit: str = "items",
        weight: Callable[[Task], int] = lambda task: 1,
        on_report: Callable[[Report], None] | None = None,
        one_core: bool = False,
    ) -> list[Report]:
        """Like `map`, for tasks with a costly set-up: each actor calls `factory` once and runs tasks with it.

        On a cluster with GPUs each of `num_workers` actors gets an equal share of them, at most one. On CPUs,
        `one_core` starts an actor for each core of the workers: for functions that compute on one thread, so
        that their bytes do not depend on the number of cores.
        """
        total = sum(weight(task) for task in tasks)
        with Progress(label, total, unit) as progress:
            collector = pool.Collector(label, tasks, weight, progress, on_report, self._exporter(label))
            self._run_actors(factory, collector, len(tasks), one_core)
        return collector.reports()

    def train(
        self,
        worker: Callable[[Config, TrainingReporter], Report],
        config: Config,
        *,
        label: str,
        total: int,
        root: str,
        unit: str = "img",
        on_metrics: Callable[[Metrics], None] | None = None,
        num_parallel: int = 1,
    ) -> Report:
        """Run `worker(config, reporter)` on the ranks of a torch.distributed group; returns rank 0's result.

        The metrics that rank 0 reports move the progress line (`total` and `Metrics.samples` count the same
        unit) and are passed to `on_metrics` in the driver, each step once, also where a retry repeats steps.

        When a rank dies, all ranks are started again, and so they are when there is room for more than
        `min_workers`. The worker must then go on from the newest checkpoint that it wrote itself; `root` only
        holds small files of Ray while the training runs.

        There are `num_workers` ranks, on a cluster with GPUs at most one a GPU. They use NCCL on GPUs, else
        gloo. This machine's cores are divided among `num_parallel` trainings.
        """
        with Progress(label, total, unit) as progress:
            forwarder = trainer.MetricForwarder(progress, on_metrics, self._exporter(label))
            if self.config.num_workers == 0:
                return worker(config, LocalReporter(forwarder.forward))
            self.start()
            return trainer.run_training(
                worker,
                config,
                label=label,
                root=root,
                group=self._worker_group(num_parallel),
                forwarder=forwarder,
                check=self._check,
            )

    def _exporter(self, label: str) -> MetricsExporter:
        return MetricsExporter(label, enabled=self.config.address is not None)

    def _hang_watch(self, label: str) -> HangWatch:
        config = self.config
        return HangWatch(label, config.hang_s, config.task_limit_s, on_nodes=config.address is not None)

    def _worker_group(self, num_parallel: int) -> trainer.WorkerGroup:
        gpus = int(self._resource("GPU"))
        num_ranks, min_ranks = self.config.num_workers, self.config.min_workers
        if min_ranks is None and gpus:
            num_ranks = min(num_ranks, gpus)
        return trainer.WorkerGroup(
            num_ranks,
            self._cpus_per_worker(num_ranks, num_parallel),
            use_gpu=gpus > 0,
            hang_s=self.config.hang_s,
            min_ranks=min_ranks or num_ranks,
        )

    def start(self) -> None:
        """Start or join Ray, unless this process is connected; other methods do so on first use."""
        settings = dict(_SETTINGS)
        if self.config.address is None:
            settings |= _OWN_RAY_SETTINGS
        if self.config.min_workers:
            settings |= _ELASTIC_SETTINGS
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        import ray  # reads some of the settings when it is imported

        with self._start_lock:
            self._check()
            if not ray.is_initialized():
                if self.config.address is None:
                    self._own_ray = OwnRay(self._num_cores())
                else:
                    self._joined_ray = (
                        True  # first, so that a start that is interrupted leaves nothing behind
                    )
                    join_ray(self.config.address, settings)

    def _num_cores(self) -> int:
        """The cores of a Ray of our own: those that this process may use, and at least one a worker."""
        return max(machine.usable_cores(), self.config.num_workers * max(1, self.config.cpus_per_worker))

    def _resource(self, name: str) -> float:
        import ray

        own = self._own_ray  # has the same as long as it lives
        resources: Mapping[str, float] = own.resources if own else ray.cluster_resources()  # type: ignore[no-untyped-call]
        return float(resources.get(name, 0.0))

    def _cpus_per_worker(self, num_workers: int, num_parallel: int = 1) -> int:
        """Cores of each of `num_workers`; UsageError if the cluster has fewer: they would wait for ever."""
        available = int(self._resource("CPU"))
        share = max(1, available // (num_workers * num_parallel)) if self.config.address is None else 1
        cpus = self.config.cpus_per_worker or share
        least = min(self.config.min_workers or num_workers, num_workers)
        if cpus * least > available:
            raise UsageError(
                f"{least} workers want {cpus * least} CPUs, the cluster has {available}; "
                f"lower cluster.{'num' if self.config.min_workers is None else 'min'}_workers or "
                "cluster.cpus_per_worker"
            )
        return cpus

    def _num_one_core_actors(self, workers: int) -> int:
        """An actor for each core of the workers, on this machine no more than it may use unless asked for."""
        num_actors = workers * self._cpus_per_worker(workers)
        if self.config.address is None and not self.config.cpus_per_worker:
            num_actors = min(num_actors, machine.usable_cores())
        return num_actors

    def _num_workers_with_room(self) -> int:
        """`num_workers`, or as many as there is room for, at least `min_workers`, where fewer will do."""
        workers, least = self.config.num_workers, self.config.min_workers
        if least is None:
            return workers
        room = int(self._resource("CPU")) // max(1, self.config.cpus_per_worker)
        return max(least, min(workers, room))


def _limit_threads() -> None:
    """Use no more threads than cores in this process; torch sees the affinity, but not a CPU quota."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = machine.usable_cores()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(min(cores, torch.get_num_threads()))
    elif cores < len(os.sched_getaffinity(0)):
        os.environ["OMP_NUM_THREADS"] = str(cores)
