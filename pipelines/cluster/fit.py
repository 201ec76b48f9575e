"""A training on Ray Train V2: ranks, a process group, retries, and nothing else. Checkpoints are the training loop's own."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from diffbfr.errors import DiffBFRError, IncompleteError
from pipelines import storage
from pipelines.progress import Metrics, Progress

Report = TypeVar("Report")
Config = TypeVar("Config")

NUM_RETRIES = 3
_POLL_S = 0.5
_SHOWN = ("loss",)  # of the posted values; the line itself tells the rate
_COLLECTIVE_TIMEOUT_S = 600
_OTHERS_REFUSE_S = 10.0


@dataclass(frozen=True)
class Group:
    """The ranks of one training."""

    num_ranks: int
    cpus_per_rank: int
    use_gpu: bool


@dataclass(frozen=True)
class _Loop(Generic[Config, Report]):
    """What each rank is sent."""

    worker: Callable[[Config, Callable[[Metrics], None]], Report]
    config: Config
    board: Any


class _Refused:
    """What a rank returns when the user has something to mend: no exception, so that Ray does not repeat what cannot succeed."""


class Journal:
    """The driver's end of the posts: moves the progress line, and hands each step on once."""

    def __init__(self, progress: Progress, on_metrics: Callable[[Metrics], None] | None) -> None:
        self._progress, self._on_metrics = progress, on_metrics
        self._last_step = -1

    def add(self, metrics: Metrics) -> None:
        """Take one post; a step that an earlier attempt already posted only moves the line."""
        self._progress.to(metrics.samples, **{name: value for name, value in metrics.values.items() if name in _SHOWN})
        if metrics.step > self._last_step:
            self._last_step = metrics.step
            if self._on_metrics is not None:
                self._on_metrics(metrics)


class Board:
    """A tiny actor between the ranks, which post, and the driver, which drains."""

    def __init__(self) -> None:
        self._posts: list[Metrics] = []
        self._refusals: dict[int, DiffBFRError] = {}

    def refuse(self, rank: int, error: DiffBFRError) -> None:
        """Keep a rank's reason why the training cannot be run."""
        self._refusals[rank] = error

    def num_refusals(self) -> int:
        """How many ranks gave one."""
        return len(self._refusals)

    def refusal(self) -> DiffBFRError | None:
        """That of the first rank which gave one."""
        return self._refusals[min(self._refusals)] if self._refusals else None

    def post(self, metrics: Metrics) -> None:
        """Keep one post until the driver asks."""
        self._posts.append(metrics)

    def drain(self) -> list[Metrics]:
        """Hand over what came since the last time."""
        posts, self._posts = self._posts, []
        return posts


def fit(
    worker: Callable[[Config, Callable[[Metrics], None]], Report],
    config: Config,
    *,
    label: str,
    root: str,
    group: Group,
    journal: Journal,
) -> Report:
    """Run the ranks to the end and return rank 0's result; a run that fails for good is an IncompleteError.

    Ray's fit runs in a thread: from the main thread it would replace the handler of Ctrl-C by one that exits with 0.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board: Any = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
    name = f"{label}-{uuid.uuid4().hex[:8]}"  # Ray Train silently does nothing for a name that has succeeded before
    state = storage.join(root, "ray")
    outcome: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcome.append(_run(_Loop(worker, config, board), name, state, group)), name="ray-train", daemon=True
    )
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            for metrics in ray.get(board.drain.remote()):
                journal.add(metrics)
        refusal = ray.get(board.refusal.remote())
    finally:
        ray.kill(board)
        if not thread.is_alive():
            with contextlib.suppress(OSError):
                storage.remove_tree(storage.join(state, name))
    if not outcome:
        raise IncompleteError(f"{label}: the training ended without a result; run the same command again")
    result = outcome[0]
    if isinstance(result, _Refused | BaseException) and refusal is not None:
        raise refusal
    if isinstance(result, BaseException):
        raise _incomplete(label, result) from result
    return cast(Report, result)


def _run(loop: _Loop[Any, Any], name: str, state: str, group: Group) -> Any:
    """In the thread: Ray Train's fit; what it raises is handed back as a value."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"loop": loop},
            torch_config=TorchConfig(backend="nccl" if group.use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=group.num_ranks, use_gpu=group.use_gpu, resources_per_worker={"CPU": group.cpus_per_rank}
            ),
            run_config=RunConfig(name=name, storage_path=state, failure_config=FailureConfig(max_failures=NUM_RETRIES)),
        )
        result: Any = trainer.fit()  # typed as V1's Result, which has no return value
        return result.return_value
    except Exception as error:  # raised again by the driver's thread
        return error


def _rank(settings: dict[str, Any]) -> Any:
    """On every rank: the worker itself, with a post that only rank 0 sends."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    loop: _Loop[Any, Any] = settings["loop"]
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ray.get(loop.board.num_refusals.remote()):
        return _Refused()
    sent: list[Any] = []

    def post(metrics: Metrics) -> None:
        if rank == 0:
            sent[:] = [loop.board.post.remote(metrics)]

    try:
        result = loop.worker(loop.config, post)
    except DiffBFRError as error:
        ray.get(loop.board.refuse.remote(rank, error))
        if _all_refuse(loop.board, ray.train.get_context().get_world_size()):
            return _Refused()
        raise  # ranks without a complaint wait for this one in a collective: Ray ends them, and the next attempt sees the refusal
    ray.get(sent)
    return result if rank == 0 else None


def _all_refuse(board: Any, num_ranks: int) -> bool:
    """Whether every rank gives its reason within a few seconds: then the training ends at once, without another attempt."""
    import ray

    deadline = time.monotonic() + _OTHERS_REFUSE_S
    while time.monotonic() < deadline:
        if ray.get(board.num_refusals.remote()) == num_ranks:
            return True
        time.sleep(0.1)
    return False


def _incomplete(label: str, error: BaseException) -> IncompleteError:
    """One line about the first rank's failure."""
    failures = [getattr(failure, "_base_exc", failure) for _, failure in sorted(getattr(error, "worker_failures", {}).items())]
    first = failures[0] if failures else error
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    reason = f"{type(first).__name__}: {lines[0] if lines else 'no message'}"
    return IncompleteError(
        f"{label}: {NUM_RETRIES + 1} attempts to train failed, the last with {reason}; "
        "run the same command again to go on from the newest checkpoint"
    )
