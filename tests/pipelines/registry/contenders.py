"""Many processes that promote the candidate at the same moment, and one that reads the aliases all the while.

MLflow takes seconds to import, so they are forks of one that did; it has no thread and no connection, and
each child opens its own. Run as `python -m tests.pipelines.registry.contenders ROOT URI EXPERIMENT COUNT`;
prints JSON.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[3]
_NAME = "diffbfr-cascade"
_START_S = 250


@dataclass(frozen=True)
class Contest:
    """What each contender says: `won`, or why not; and every pair of champion and previous that the reader
    saw, each time they changed.
    """

    answers: list[str]
    seen: list[list[int]]
    num_reads: int


def contend(root: Path, uri: str, experiment: str, count: int) -> Contest:
    """Let `count` processes promote at once; one that ends with anything but a refusal fails, and a reader
    who finds no version too.
    """
    words = [sys.executable, "-m", __name__, str(root), uri, experiment, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return Contest(**json.loads(done.stdout))


def _main(root: str, uri: str, experiment: str, count: int) -> None:
    import mlflow.store.model_registry.sqlalchemy_store  # before the forks, for each would take seconds
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from diffbfr.errors import DiffBFRError
    from pipelines.registry import get_version, promote
    from pipelines.tracking.connection import open_registry

    assert threading.active_count() == 1
    context, parent = multiprocessing.get_context("fork"), os.getpid()
    start, stop = context.Barrier(count + 1), context.Event()
    answers, sights = context.SimpleQueue(), context.SimpleQueue()
    registry = open_registry(root, uri, experiment)

    def attempt() -> None:
        _ = registry.client
        start.wait(_START_S)
        try:
            promote(registry)
            answers.put("won")
        except DiffBFRError as refusal:
            answers.put(str(refusal)[:500])

    def read() -> None:
        _ = registry.client
        start.wait(_START_S)
        seen, num_reads = list[list[int]](), 0
        while not stop.is_set() and os.getppid() == parent:
            pair = [get_version(registry, f"{_NAME}@{alias}").version for alias in ("champion", "previous")]
            seen += [] if seen[-1:] == [pair] else [pair]
            num_reads += 1
        sights.put((seen, num_reads))

    reader = context.Process(target=read)
    contenders = [context.Process(target=attempt) for _ in range(count)]
    for process in (reader, *contenders):
        process.start()
    for process in contenders:
        process.join()
    stop.set()
    reader.join()
    if any(process.exitcode for process in (reader, *contenders)):
        raise SystemExit(1)
    print(json.dumps(asdict(Contest([answers.get() for _ in contenders], *sights.get()))))


if __name__ == "__main__":
    _main(*sys.argv[1:4], int(sys.argv[4]))
