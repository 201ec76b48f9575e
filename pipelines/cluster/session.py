"""A `Cluster`: where work runs. Ray starts on first use only and stops when the context ends."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from diffbfr.errors import UsageError
from pipelines.cluster import pool, trainer
from pipelines.cluster.monitor import LocalReporter
from pipelines.progress import Metrics, Progress, TrainingReporter

Task = TypeVar("Task")
Report = TypeVar("Report")
Config = TypeVar("Config")

_ANSWER_S = 10.0
_OBJECT_STORE_BYTES = (
    256 << 20
)  # tasks and reports are names and numbers; Ray's default would take 30 % of the memory
_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # on shared cores, threads that spin at barriers take them from each other
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task that asks for no GPU sees none
    # Ray's paragraphs about workers that died would go to standard output, where others expect JSON
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # training workers keep the driver's folder, so that relative paths mean the same
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead training worker is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # for its places, then they are asked for anew
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": str(
        pool.NUM_WORKER_DEATHS
    ),  # else a task that does not fit into memory is run again for ever
}
_QUIET = {  # of a Ray of our own: nobody looks at its figures, and its waiting processes take a third less
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
}
_ELASTIC = {
    # workers whose machine is lost are not waited for where fewer will do
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
_FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "DIFFBFR_CACHE",
    "DIFFBFR_CACHE_BYTES",
    "DIFFBFR_S3_READ_TWICE",
)


@dataclass(frozen=True)
class ClusterConfig:
    """Where work runs; never part of an identity.

    `num_workers=0` runs everything in this process. `address=None` starts a Ray of its own on this machine,
    otherwise that cluster is joined. `cpus_per_worker=0` shares this machine's cores equally (1 on a joined
    cluster). Steps that need none of each other (TEM and IRM-1) run side by side where there are cores, or
    GPUs, for the workers of both. With `min_workers` work needs no more than so many to begin, or to go on
    when machines are lost; more are taken as they come, up to `num_workers`.

    Of a training: blocks whose maps are `recompute_px` or wider are run again in the backward pass, and a
    worker holds at most `micro_batch` images at once, adding up their gradients: less memory, more time, the
    same result. `compile` hands the networks to torch.compile. Workers that finish no step for `hang_s`
    seconds (or five usual steps) are replaced.
    """

    num_workers: int = 2
    min_workers: int | None = None
    address: str | None = None
    cpus_per_worker: int = 0
    recompute_px: int | None = None
    micro_batch: int | None = None
    compile: bool = False
    hang_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "recompute_px"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"cluster.{name} is {getattr(self, name)}; expected 0 or more; set it so")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            most = f"1 to cluster.num_workers={self.num_workers}"
            raise UsageError(
                f"cluster.min_workers is {self.min_workers}; expected {most}, or none for exactly those"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(
                f"cluster.micro_batch is {self.micro_batch}; expected at least 1, or none for all at once"
            )
        if self.hang_s <= 0:
            raise UsageError(f"cluster.hang_s is {self.hang_s}; expected a positive number of seconds")


class Cluster:
    """Runs tasks and trainings on the configured workers; a context manager, whose end stops the Ray that it
    started.

    `num_workers=0` is the serial twin: no Ray, the same results. One failing task does not stop the others:
    what failed is named in an `IncompleteError` at the end. A `UsageError` or `QuarantineError` of a task
    stops the work and surfaces as itself. A worker that dies (killed, out of memory, node lost) is replaced,
    and its task runs again, up to three times on actors and twenty elsewhere; so does one that a network
    failed, three times. Threads may use it side by side.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._owns_ray = False
        self._starting = threading.Lock()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_ray:
            import ray

            ray.shutdown()
            self._owns_ray = False

    def fraction_needed(self, num_parallel: int = 1) -> float:
        """The part of the cluster that work on `num_workers` takes, of which so many may be under way at
        once; 1 in this process.
        """
        workers = self.config.num_workers
        if workers == 0:
            return 1.0
        self._start()
        gpus = int(self._resource("GPU"))
        of_gpus = min(workers, gpus) / gpus if gpus else 0.0
        return max(of_gpus, workers * self._cpus_per_worker(workers, num_parallel) / self._resource("CPU"))

    def stop(self) -> None:
        """End what other threads have under way here, each with a KeyboardInterrupt: Ctrl-C itself reaches
        only the main thread.
        """
        self._stopping.set()

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

        `on_report` is called here, in the driver, as each one ends. `weight` is what a task counts on the
        progress line.
        """
        with Progress(label, sum(weight(task) for task in tasks), unit) as progress:
            collector = pool.Collector(label, tasks, weight, progress, on_report)
            patient = partial(pool.with_retries, function)
            if self.config.num_workers == 0:
                pool.run_serially(patient, collector)
            elif tasks:
                self._start()
                pool.run_tasks(patient, collector, self.config.num_workers, self._stopping)
        return collector.reports()

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
        """Like `map`, for work that is costly to set up: each of `num_workers` actors calls `factory` once
        and runs tasks with it.

        On a cluster with GPUs each actor gets an equal share of them, at most one. Elsewhere, with
        `one_core`, for work that computes on one thread so that its bytes do not depend on their number,
        there are as many actors as the workers have cores.
        """
        with Progress(label, sum(weight(task) for task in tasks), unit) as progress:
            collector = pool.Collector(label, tasks, weight, progress, on_report)
            if self.config.num_workers == 0:
                pool.run_serially(pool.Worker(factory).run, collector)
            elif tasks:
                self._start()
                workers, gpus = self._num_there(), self._resource("GPU")
                alone = one_core and not gpus
                num_actors = min(workers * self._cpus_per_worker(workers) if alone else workers, len(tasks))
                cpus = 1 if alone else self._cpus_per_worker(num_actors)
                pool.run_actors(
                    factory,
                    collector,
                    num_actors,
                    cpus,
                    pool.gpu_share(num_actors, int(gpus)),
                    self._stopping,
                )
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
        """Run `worker(config, link)` on `num_workers` ranks of one torch.distributed group and return rank
        0's result.

        Rank 0's posts move the progress line (`total` and `Metrics.samples` in the same unit) and reach
        `on_metrics` here, each step once, also when a retried attempt repeats steps. When a rank dies, or
        with `min_workers` when there is room for more, all start again, and the worker is expected to go on
        from the newest checkpoint that it sealed itself; `root` only holds Ray's own small state while the
        training runs. Ranks use gloo; on a cluster with GPUs NCCL, one GPU a rank, so that there are at most
        as many ranks as GPUs. Where this machine's cores are shared out, they are for `num_parallel` such
        trainings.
        """
        with Progress(label, total, unit) as progress:
            forwarder = trainer.MetricForwarder(progress, on_metrics)
            if self.config.num_workers == 0:
                return worker(config, LocalReporter(forwarder.add))
            self._start()
            gpus = int(self._resource("GPU"))
            num_ranks, least = self.config.num_workers, self.config.min_workers
            if least is None and gpus:
                num_ranks = min(num_ranks, gpus)
            cpus = self._cpus_per_worker(num_ranks, num_parallel)
            group = trainer.WorkerGroup(
                num_ranks, cpus, use_gpu=gpus > 0, hang_s=self.config.hang_s, min_ranks=least or num_ranks
            )
            return trainer.fit(
                worker,
                config,
                label=label,
                root=root,
                group=group,
                forwarder=forwarder,
                stopping=self._stopping,
            )

    def _start(self) -> None:
        """Start or join Ray, unless this process already has one. It tells nothing but its own errors: we
        say what matters.
        """
        settings = (
            _SETTINGS
            | (_QUIET if self.config.address is None else {})
            | (_ELASTIC if self.config.min_workers else {})
        )
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        import ray  # reads some of them now

        with self._starting:
            if not ray.is_initialized():
                self._connect(settings)

    def _connect(self, settings: Mapping[str, str]) -> None:
        import ray

        if self.config.address is None:
            ray.init(
                address="local",
                num_cpus=max(
                    os.cpu_count() or 1, self.config.num_workers * max(1, self.config.cpus_per_worker)
                ),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            forwarded = {name: os.environ[name] for name in (*settings, *_FORWARDED) if name in os.environ}
            try:
                _check_answers(self.config.address)
                ray.init(
                    address=self.config.address,
                    runtime_env={"env_vars": forwarded},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (
                OSError,
                ValueError,
                RuntimeError,
            ) as error:  # nobody there, no address, another version of Ray or Python
                reason = " ".join(str(error).split())
                raise UsageError(
                    f"no Ray cluster at {self.config.address} ({reason}); expected a running one; check "
                    "cluster.address"
                ) from error
        self._owns_ray = True

    def _resource(self, name: str) -> float:
        import ray

        resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return float(resources.get(name, 0.0))

    def _cpus_per_worker(self, num_workers: int, num_parallel: int = 1) -> int:
        """Cores for each of `num_workers` held at the same time; UsageError if the cluster has fewer, for
        they would wait for ever.
        """
        there = int(self._resource("CPU"))
        share = max(1, there // (num_workers * num_parallel)) if self.config.address is None else 1
        wanted = self.config.cpus_per_worker or share
        least = min(self.config.min_workers or num_workers, num_workers)
        if wanted * least > there:
            raise UsageError(
                f"{least} workers want {wanted * least} CPUs, the cluster has {there}; "
                f"lower cluster.{'num' if self.config.min_workers is None else 'min'}_workers or "
                "cluster.cpus_per_worker"
            )
        return wanted

    def _num_there(self) -> int:
        """The workers that there is room for, where fewer than `num_workers` will do."""
        workers, least = self.config.num_workers, self.config.min_workers
        if least is None:
            return workers
        return max(least, min(workers, int(self._resource("CPU")) // max(1, self.config.cpus_per_worker)))


def _check_answers(address: str) -> None:
    """OSError if nobody listens at HOST:PORT, for which Ray would look for minutes; other addresses it
    looks up itself.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
