"""How long it takes to take a champion back: the call alone, its processor time, and the command with all its
imports.

`.venv/bin/python -m tests.benchmarks.rollback` makes a registry of two versions in SQLite and prints all
three; `--tracking URI` asks a server instead, whose `diffbfr-cascade` it moves: give it one of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from pipelines.registry import CASCADE, rollback
from pipelines.tracking.connection import Registry, open_registry

ROUNDS = 9


def two_versions(registry: Registry) -> None:
    """A champion and one before it; rollback reads no files, so they have none."""
    registry.client.create_registered_model(CASCADE)
    for alias in ("previous", "champion"):
        version = registry.client.create_model_version(CASCADE, "none:/nowhere")
        registry.client.set_registered_model_alias(CASCADE, alias, version.version)


def report(
    title: str, run: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Print median and range of some rounds."""
    seconds = []
    for _ in range(rounds):
        started = clock()
        run()
        seconds.append(clock() - started)
    print(f"{title:<44}{statistics.median(seconds):7.3f} s   {min(seconds):.3f} to {max(seconds):.3f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracking", help="an MLflow server; SQLite in a temporary folder if not given")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        registry = open_registry(root, options.tracking)
        two_versions(registry)
        report("rollback(), wall time", lambda: rollback(registry), options.rounds)
        report(
            "rollback(), processor time here", lambda: rollback(registry), options.rounds, time.process_time
        )
        place = ["--root", root, *(["--tracking", options.tracking] if options.tracking else [])]
        command = [
            sys.executable,
            "-c",
            "from pipelines.cli import main; main()",
            "models",
            "rollback",
            *place,
        ]
        report(
            "`diffbfr models rollback`, wall time",
            lambda: subprocess.run(command, check=True, capture_output=True),
            options.rounds,
        )
        words = [sys.executable, "-c", "import mlflow"]
        report(
            "of which `import mlflow`, wall time", lambda: subprocess.run(words, check=True), options.rounds
        )


if __name__ == "__main__":
    main()
