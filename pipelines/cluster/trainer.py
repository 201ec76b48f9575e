"""A training on Ray Train V2: ranks, a process group and retries. Checkpoints belong to the training loop."""

import contextlib
import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from diffbfr.errors import DivergedError, IncompleteError, UsageError
from pipelines import storage
from pipelines.cluster.capacity import CapacityWarning
from pipelines.cluster.failures import describe, describe_training_failure, root_cause
from pipelines.cluster.metrics import MetricsExporter
from pipelines.cluster.monitor import MonitorClient, TrainingMonitor
from pipelines.cluster.protocol import Metrics, TrainingReporter
from pipelines.cluster.watchdog import RankReporter, kill_hung_ranks, kill_ranks
from pipelines.progress import Progress

Report = TypeVar("Report")
Config = TypeVar("Config")

NUM_RETRIES = 3
"""How many attempts in a row may make no new step before the training fails; others are not counted."""
RESIZE_S = 60.0
"""How often Ray Train checks whether an elastic training has room for more ranks."""
START_TIME_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_MAX_START_S = 300.0
_POLL_S = 0.5
_SHOWN_METRICS = ("loss",)
_COLLECTIVE_TIMEOUT_S = 600
_USER_ERRORS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class WorkerGroup:
    """The ranks of one training, and the resources of each."""

    num_ranks: int
    cpus_per_rank: int
    use_gpu: bool
    hang_s: float = 30.0
    """Silence of all ranks after which the group counts as hung (`RankReporter`)."""
    min_ranks: int | None = None
    """Training runs with as few ranks as this while there is no room for `num_ranks`; None: never fewer."""

    @property
    def sizes(self) -> int | tuple[int, int]:
        """The number of ranks, or its range, in the form that Ray Train's ScalingConfig takes."""
        least = self.min_ranks or self.num_ranks
        return self.num_ranks if least == self.num_ranks else (least, self.num_ranks)


@dataclass(frozen=True)
class _TrainJob(Generic[Config, Report]):
    """What is sent to each rank."""

    worker: Callable[[Config, TrainingReporter], Report]
    config: Config
    monitor: MonitorClient
    label: str
    hang_s: float
    num_retries: int


class _UserErrorReported:
    """Returned by a rank that reported a UsageError or DivergedError: Ray would retry after an exception."""


class MetricForwarder:
    """Forwards reported metrics to the progress line and to a callback, each step once."""

    def __init__(
        self,
        progress: Progress,
        on_metrics: Callable[[Metrics], None] | None,
        exporter: MetricsExporter | None = None,
    ) -> None:
        self._progress = progress
        self._on_metrics = on_metrics
        self.exporter = exporter if exporter is not None else MetricsExporter("", enabled=False)
        self._last_step = -1
        self._last_samples: int | None = None

    def forward(self, metrics: Metrics) -> None:
        """Forward metrics; a step that an earlier attempt already reported only moves the progress line."""
        shown = {name: value for name, value in metrics.values.items() if name in _SHOWN_METRICS}
        self._progress.to(metrics.samples, **shown)
        if metrics.step > self._last_step:
            # samples of an earlier run are not work of this one
            before = metrics.samples if self._last_samples is None else self._last_samples
            self.exporter.done(metrics.samples - before, self._progress.unit)
            self.exporter.training_metrics(metrics.values)
            self._last_step, self._last_samples = metrics.step, metrics.samples
            if self._on_metrics is not None:
                self._on_metrics(metrics)


def run_training(
    worker: Callable[[Config, TrainingReporter], Report],
    config: Config,
    *,
    label: str,
    root: str,
    group: WorkerGroup,
    forwarder: MetricForwarder,
    check: Callable[[], None],
) -> Report:
    """Run the ranks to the end and return the result of rank 0.

    Ranks that die or hang are restarted for as long as attempts make new steps; while machines are missing
    the training waits, with a warning every minute. Raises IncompleteError when the training fails for good,
    a UsageError or DivergedError of a rank as itself, and what `check` raises, which is called meanwhile.
    """
    import ray

    monitor = MonitorClient.start(check)
    job = _TrainJob(worker, config, monitor, label, group.hang_s, NUM_RETRIES)
    # Ray Train silently does nothing for a run name that has succeeded before.
    name = f"{label}-{uuid.uuid4().hex[:8]}"
    state = storage.join(root, "ray")
    capacity = CapacityWarning(label, group.min_ranks or group.num_ranks, group.cpus_per_rank)
    outcome: list[Any] = []
    # In the main thread, Ray Train would replace the handler of Ctrl-C by one that exits with 0.
    thread = threading.Thread(
        target=lambda: outcome.append(_run_attempts(job, name, state, group)), name="ray-train", daemon=True
    )
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            check()
            for metrics in monitor.call(TrainingMonitor.take_metrics):
                forwarder.forward(metrics)
            if forwarder.exporter.enabled:
                forwarder.exporter.restart_stats(monitor.call(TrainingMonitor.restart_stats))
            for failure in monitor.call(TrainingMonitor.take_failures):
                logging.getLogger(__name__).warning(
                    "%s: %s; all workers go on from the newest checkpoint", label, failure
                )
            if hung := monitor.call(TrainingMonitor.hung_ranks):
                monitor.call(TrainingMonitor.forget_ranks)
                kill_hung_ranks(hung, label, root, kill_ranks)
            capacity.check(monitor.call(TrainingMonitor.any_alive), lambda: _waits_for_room(group))
        user_error = monitor.call(TrainingMonitor.user_error)
    except ray.exceptions.RayError as error:
        raise _incomplete(label, error) from error
    finally:
        monitor.stop()
        if not thread.is_alive():
            _remove_state(state, name)
    if not outcome:
        raise IncompleteError(f"{label}: the training ended without a result; run the same command again")
    result = outcome[0]
    if isinstance(result, _UserErrorReported | BaseException) and user_error is not None:
        raise user_error
    if isinstance(result, IncompleteError):
        raise result
    if isinstance(result, BaseException):
        raise _incomplete(label, result) from result
    return cast(Report, result)


def _remove_state(state: str, name: str) -> None:
    """Remove what Ray Train wrote for the attempts of a training that has ended."""
    with contextlib.suppress(OSError):
        for folder in storage.list_dir(state):
            if folder.startswith(name):
                storage.remove_tree(storage.join(state, folder))


def _waits_for_room(group: WorkerGroup) -> bool:
    """Whether Ray has no room for a group of such ranks.

    Ray Train asks for no placement group at all while an elastic training has room for too few ranks.
    """
    from ray.util import placement_group_table

    wanted = {"CPU": float(group.cpus_per_rank)} | ({"GPU": 1.0} if group.use_gpu else {})
    states = set()
    for placement_group in placement_group_table().values():
        if all(bundle == wanted for bundle in placement_group["bundles"].values()):
            states.add(placement_group["state"])
    return "CREATED" not in states or not states.isdisjoint(("PENDING", "RESCHEDULING"))


def _run_attempts(job: _TrainJob[Any, Any], name: str, state: str, group: WorkerGroup) -> Any:
    """In a thread: run Ray Train until the training ends; an exception is returned, for the driver to raise.

    Ray Train itself restarts ranks that fail. A group that does not start (ranks that die, or that do not
    meet) and a lost controller end Ray Train; it is started again here, within the same number of retries.
    Waiting for machines is not counted. A group that had not started in its time gets twice the time, for on
    a slow machine the same time would never do.
    """
    import ray
    from ray.train import ControllerError

    for attempt in itertools.count():
        trainer = _make_trainer(job, f"{name}-{attempt}", state, group)
        try:
            result: Any = trainer.fit()  # typed as V1's Result, which has no return value
            return result.return_value
        except ControllerError as error:
            if type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError":
                _double_start_time()
                continue
            reason = describe(error.controller_failure)
        except ray.exceptions.RayTaskError as error:
            return error
        except ray.exceptions.RayError as error:  # the controller died, and its ranks with it
            reason = f"Ray Train's controller died ({describe(error)})"
        except Exception as error:
            return error
        try:
            if job.monitor.call(TrainingMonitor.record_failed_start, reason) > job.num_retries:
                return _exhausted(job, reason)
        except (ray.exceptions.RayError, ConnectionError) as error:  # the driver has ended the training
            return error
    return None


def _double_start_time() -> None:
    """Give the groups that Ray Train starts from now on more time; it reads the variable for each."""
    seconds = float(os.environ.get(START_TIME_VARIABLE, _MAX_START_S))
    os.environ[START_TIME_VARIABLE] = f"{max(seconds, min(2 * seconds, _MAX_START_S)):g}"


def _make_trainer(job: _TrainJob[Any, Any], name: str, state: str, group: WorkerGroup) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    monitor = job.monitor

    class FailureCallback(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            monitor.call(TrainingMonitor.record_failure, root_cause(worker_exceptions))

    return TorchTrainer(
        _run_rank,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if group.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S
        ),
        # The types are those of Ray Train V1, which is not elastic.
        scaling_config=ScalingConfig(
            num_workers=group.sizes,  # type: ignore[arg-type]
            use_gpu=group.use_gpu,
            resources_per_worker={"CPU": group.cpus_per_rank},
            elastic_resize_monitor_interval_s=RESIZE_S,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=name,
            storage_path=state,
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),  # type: ignore[call-arg]
            callbacks=[FailureCallback()],  # type: ignore[list-item]
        ),
    )


def _run_rank(settings: dict[str, Any]) -> Any:
    """On every rank: run the worker, and report to the monitor how it ended."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    job: _TrainJob[Any, Any] = settings["job"]
    monitor, context = job.monitor, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if monitor.call(TrainingMonitor.num_user_errors):
        return _UserErrorReported()
    if monitor.call(TrainingMonitor.begin_attempt, rank, world_size) > job.num_retries:
        reason = monitor.call(TrainingMonitor.last_exception)
        monitor.call(TrainingMonitor.report_user_error, rank, _exhausted(job, reason))
        if _all_ranks_reported_user_error(monitor, world_size):
            return _UserErrorReported()
        raise RuntimeError(reason)
    reporter = RankReporter(monitor, rank, ray.get_runtime_context().get_node_id(), job.hang_s)
    try:
        result = job.worker(job.config, reporter)
    except (UsageError, DivergedError) as error:  # another attempt would raise the same
        monitor.call(TrainingMonitor.report_user_error, rank, error)
        if _all_ranks_reported_user_error(monitor, world_size):
            return _UserErrorReported()
        # Ranks without an error wait for this one in a collective: Ray ends them after the exception, and
        # the next attempt finds the report.
        raise
    except Exception as error:
        monitor.call(TrainingMonitor.record_exception, describe(error))
        raise
    finally:
        reporter.close()
    reporter.flush()
    return result if rank == 0 else None


def _all_ranks_reported_user_error(monitor: MonitorClient, world_size: int) -> bool:
    """Wait a few seconds for the errors of all ranks: then the training ends without another attempt."""
    deadline = time.monotonic() + _USER_ERRORS_TIMEOUT_S
    while time.monotonic() < deadline:
        if monitor.call(TrainingMonitor.num_user_errors) == world_size:
            return True
        time.sleep(0.1)
    return False


def _exhausted(job: _TrainJob[Any, Any], reason: str) -> IncompleteError:
    return IncompleteError(
        f"{job.label}: {job.num_retries + 1} attempts to train came no further, the last with {reason}; "
        "run the same command again to go on from the newest checkpoint"
    )


def _incomplete(label: str, error: BaseException) -> IncompleteError:
    return IncompleteError(
        f"{label}: the training failed with {describe_training_failure(error)}; "
        "run the same command again to go on from the newest checkpoint"
    )
