"""A training on Ray Train V2: ranks, a process group, retries, and nothing else. Checkpoints are the
training loop's own.
"""

import contextlib
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from diffbfr.errors import DivergedError, IncompleteError, UsageError
from pipelines import storage
from pipelines.cluster.capacity import CapacityWarning
from pipelines.cluster.monitor import TrainingMonitor
from pipelines.cluster.watchdog import RankReporter, kill_hung_ranks, kill_ranks
from pipelines.progress import Metrics, Progress, TrainingReporter

Report = TypeVar("Report")
Config = TypeVar("Config")

NUM_RETRIES = 3
"""Attempts that may follow one another without coming further than those before; any number may that do."""
_POLL_S = 0.5
_SHOWN = ("loss",)  # of the posted values; the line itself tells the rate
_COLLECTIVE_TIMEOUT_S = 600
_OTHERS_REFUSE_S = 10.0
RESIZE_S = 60.0
"""How often a training that may grow looks whether it can."""


@dataclass(frozen=True)
class WorkerGroup:
    """The ranks of one training."""

    num_ranks: int
    cpus_per_rank: int
    use_gpu: bool
    hang_s: float = 30.0
    """How long no rank may finish a step before the group is taken for hung (`RankReporter`)."""
    min_ranks: int | None = None
    """With fewer ranks than `num_ranks`, but no fewer than these, it trains while there is no room for
    more.
    """

    @property
    def sizes(self) -> int | tuple[int, int]:
        """As Ray Train asks for it."""
        least = self.min_ranks or self.num_ranks
        return self.num_ranks if least == self.num_ranks else (least, self.num_ranks)


@dataclass(frozen=True)
class _TrainJob(Generic[Config, Report]):
    """What each rank is sent."""

    worker: Callable[[Config, TrainingReporter], Report]
    config: Config
    board: Any
    label: str
    hang_s: float
    retries: int


class _UserErrorReturned:
    """What a rank returns when the user has something to mend: no exception, so that Ray does not repeat
    what cannot succeed.
    """


class MetricForwarder:
    """The driver's end of the posts: moves the progress line, and hands each step on once."""

    def __init__(self, progress: Progress, on_metrics: Callable[[Metrics], None] | None) -> None:
        self._progress, self._on_metrics = progress, on_metrics
        self._last_step = -1

    def add(self, metrics: Metrics) -> None:
        """Take one post; a step that an earlier attempt already posted only moves the line."""
        self._progress.to(
            metrics.samples, **{name: value for name, value in metrics.values.items() if name in _SHOWN}
        )
        if metrics.step > self._last_step:
            self._last_step = metrics.step
            if self._on_metrics is not None:
                self._on_metrics(metrics)


def fit(
    worker: Callable[[Config, TrainingReporter], Report],
    config: Config,
    *,
    label: str,
    root: str,
    group: WorkerGroup,
    forwarder: MetricForwarder,
    stopping: threading.Event,
) -> Report:
    """Run the ranks to the end and return rank 0's result; a run that fails for good is an IncompleteError.

    Ranks that die or hang begin again, as often as it takes, until attempts make no progress any more; while
    machines are missing they wait, and say so.

    Ray's fit runs in a thread: from the main thread it would replace the handler of Ctrl-C by one that exits
    with 0.
    """
    import ray

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    board: Any = ray.remote(num_cpus=0, label_selector=here)(
        TrainingMonitor
    ).remote()  # by affinity a machine just found may keep it to itself
    # Ray Train silently does nothing for a name that has succeeded before
    name = f"{label}-{uuid.uuid4().hex[:8]}"
    state = storage.join(root, "ray")
    outcome: list[Any] = []
    loop = _TrainJob(worker, config, board, label, group.hang_s, NUM_RETRIES)
    waiting = CapacityWarning(label, group.min_ranks or group.num_ranks, group.cpus_per_rank)
    thread = threading.Thread(
        target=lambda: outcome.append(_run(loop, name, state, group)), name="ray-train", daemon=True
    )
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            if stopping.is_set():
                raise KeyboardInterrupt
            for metrics in ray.get(board.drain.remote()):
                forwarder.add(metrics)
            for loss in ray.get(board.failures.remote()):
                logging.getLogger(__name__).warning(
                    "%s: %s; all workers go on from the newest checkpoint", label, loss
                )
            if hung := ray.get(board.hung.remote()):
                ray.get(board.forget.remote())
                kill_hung_ranks(hung, label, root, kill_ranks)
            waiting.check(ray.get(board.any_alive.remote()), lambda: _without_place(group))
        refusal = ray.get(board.user_error.remote())
    except ray.exceptions.RayError as error:
        raise _incomplete(label, error) from error
    finally:
        ray.kill(board)
        if not thread.is_alive():
            with contextlib.suppress(OSError):
                for folder in storage.list_dir(state):
                    if folder.startswith(name):
                        storage.remove_tree(storage.join(state, folder))
    if not outcome:
        raise IncompleteError(f"{label}: the training ended without a result; run the same command again")
    result = outcome[0]
    if isinstance(result, _UserErrorReturned | BaseException) and refusal is not None:
        raise refusal
    if isinstance(result, IncompleteError):
        raise result
    if isinstance(result, BaseException):
        raise _incomplete(label, result) from result
    return cast(Report, result)


def _without_place(group: WorkerGroup) -> bool:
    """Whether a group of such workers has no place yet; one that may shrink is not even there while there
    is room for too few.
    """
    from ray.util import placement_group_table

    each = {"CPU": float(group.cpus_per_rank)} | ({"GPU": 1.0} if group.use_gpu else {})
    states = [
        it["state"]
        for it in placement_group_table().values()
        if all(bundle == each for bundle in it["bundles"].values())
    ]
    return "CREATED" not in states or "PENDING" in states or "RESCHEDULING" in states


def _run(loop: _TrainJob[Any, Any], name: str, state: str, group: WorkerGroup) -> Any:
    """In the thread: Ray Train's fit; what it raises is handed back as a value.

    Ray begins again after a rank's end; after a group that did not even start (ranks that died or did not
    meet) this does, with the same patience. A group that waits for machines has all the patience.
    """
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    board = loop.board

    class FailureCallback(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            ray.get(board.record_failure.remote(_cause(worker_exceptions)))

    for start in itertools.count():
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"loop": loop},
            torch_config=TorchConfig(
                backend="nccl" if group.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S
            ),
            scaling_config=ScalingConfig(  # typed as V1's, which is not elastic
                num_workers=group.sizes,  # type: ignore[arg-type]
                use_gpu=group.use_gpu,
                resources_per_worker={"CPU": group.cpus_per_rank},
                elastic_resize_monitor_interval_s=RESIZE_S,  # type: ignore[call-arg]
            ),
            run_config=RunConfig(
                name=f"{name}-{start}",
                storage_path=state,
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),  # type: ignore[call-arg] # V1's
                callbacks=[FailureCallback()],  # type: ignore[list-item]
            ),
        )
        try:
            result: Any = trainer.fit()  # typed as V1's Result, which has no return value
            return result.return_value
        except ControllerError as error:
            if type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError":
                continue
            reason = _words(error.controller_failure)
        except ray.exceptions.RayTaskError as error:  # raised again by the driver's thread
            return error
        except ray.exceptions.RayError as error:  # the controller died, and the ranks end with it
            reason = f"Ray Train's controller died ({_words(error)})"
        except Exception as error:  # raised again by the driver's thread
            return error
        try:
            if ray.get(board.record_failed_start.remote(reason)) > loop.retries:
                return _exhausted(loop, reason)
        except ray.exceptions.RayError as error:  # the driver has ended it all
            return error
    return None


def _rank(settings: dict[str, Any]) -> Any:
    """On every rank: the worker itself, with a link to the driver."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    loop: _TrainJob[Any, Any] = settings["loop"]
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ray.get(loop.board.num_user_errors.remote()):
        return _UserErrorReturned()
    world = ray.train.get_context().get_world_size()
    if ray.get(loop.board.begin.remote(rank, world)) > loop.retries:
        reason = ray.get(loop.board.failure.remote())
        ray.get(loop.board.report_user_error.remote(rank, _exhausted(loop, reason)))
        if _all_refuse(loop.board, world):
            return _UserErrorReturned()
        raise RuntimeError(reason)
    link = RankReporter(loop.board, rank, ray.get_runtime_context().get_node_id(), loop.hang_s)
    try:
        result = loop.worker(loop.config, link)
    except (UsageError, DivergedError) as error:  # it would be the same the next time
        ray.get(loop.board.report_user_error.remote(rank, error))
        if _all_refuse(loop.board, world):
            return _UserErrorReturned()
        # ranks without a complaint wait for this one in a collective: Ray ends them, and the next attempt
        # sees the refusal
        raise
    except Exception as error:
        ray.get(loop.board.fail.remote(_words(error)))
        raise
    finally:
        link.close()
    link.flush()
    return result if rank == 0 else None


def _all_refuse(board: Any, num_ranks: int) -> bool:
    """Whether every rank gives its reason within a few seconds: then the training ends at once, without
    another attempt.
    """
    import ray

    deadline = time.monotonic() + _OTHERS_REFUSE_S
    while time.monotonic() < deadline:
        if ray.get(board.num_user_errors.remote()) == num_ranks:
            return True
        time.sleep(0.1)
    return False


def _exhausted(loop: _TrainJob[Any, Any], reason: str) -> IncompleteError:
    return IncompleteError(
        f"{loop.label}: {loop.retries + 1} attempts to train came no further, the last with {reason}; "
        "run the same command again to go on from the newest checkpoint"
    )


def _incomplete(label: str, error: BaseException) -> IncompleteError:
    """One line about the first rank's failure."""
    failures = getattr(error, "worker_failures", {})
    return IncompleteError(
        f"{label}: the training failed with {_words(_own(failures[min(failures)]) if failures else error)}; "
        "run the same command again to go on from the newest checkpoint"
    )


def _cause(failures: Mapping[int, BaseException]) -> str:
    """Why a group of workers ended: who died, for then the others fail in what they share; else what the
    first of them failed with.
    """
    died = {
        rank: getattr(failure, "health_check_failure", None) for rank, failure in sorted(failures.items())
    }
    dead = [str(rank) for rank, failure in died.items() if failure is not None]
    if not dead:
        rank = min(failures)
        return f"worker {rank} failed with {_words(_own(failures[rank]))}"
    out_of_memory = any("OutOfMemory" in type(failure).__name__ for failure in died.values())
    return (
        f"worker {' and '.join(dead)} died "
        f"({'out of memory' if out_of_memory else 'killed, or its machine was lost'})"
    )


def _own(failure: BaseException) -> BaseException:
    """The exception that a worker raised, out of Ray Train's wrapper."""
    inner = getattr(failure, "_base_exc", failure)
    return inner if isinstance(inner, BaseException) else failure


def _words(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
