"""Many processes that promote the candidate at the same moment. MLflow takes seconds to import, so they are forks of one that did.

Run as `python -m tests.pipelines.registry.contenders ROOT URI EXPERIMENT COUNT`; prints how each ended.
"""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[3]


def contend(root: Path, uri: str, experiment: str, count: int) -> list[str]:
    """Let `count` processes promote at once; returns what each says: `won`, or why not."""
    words = [sys.executable, "-m", __name__, str(root), uri, experiment, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _main(root: str, uri: str, experiment: str, count: str) -> None:
    import mlflow.store.model_registry.sqlalchemy_store  # before the forks, for each would take seconds
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from diffbfr.errors import DiffBFRError
    from pipelines.registry import open_registry, promote

    ready_end, ready = os.pipe()
    start, start_end = os.pipe()
    for _ in range(int(count)):
        if os.fork():
            continue
        os.close(start_end)
        registry = open_registry(root, uri, experiment)
        _ = registry.client
        os.write(ready, b".")
        os.read(start, 1)  # ends when the parent closes its end
        try:
            promote(registry)
            answer = "won"
        except DiffBFRError as error:
            answer = str(error)
        os.write(1, f"{answer[:500]}\n".encode())
        os._exit(0)
    for _ in range(int(count)):
        os.read(ready_end, 1)
    os.close(start_end)
    failed = [status for _, status in (os.wait() for _ in range(int(count))) if status]
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
