"""Processes of their own that begin with everything imported: forks of one server, which imports once for a
test process what each of them would import for seconds.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess

_IMPORTED = (
    "torch._dynamo",
    "cv2",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pipelines.steps.restore",
    "pipelines.steps.shard",
    "pipelines.steps.train",
    "pyarrow.parquet",
    "tests.diffbfr.training.ranks",
    "tests.pipelines.flows.pocket",
)


def context() -> ForkServerContext:
    """The server's processes; they have the environment in which the first of them was started."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(_IMPORTED))
    return made


def process(target: Callable[..., object], *words: object) -> ForkServerProcess:
    """A process that calls `target` with the words, in the environment that this one has now; not started."""
    return context().Process(target=_run, args=(dict(os.environ), target, words))


def _run(environment: Mapping[str, str], target: Callable[..., object], words: tuple[object, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*words)
