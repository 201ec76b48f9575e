"""The smoke recipe, smaller: as a command, and what a finished run of it holds."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines import storage
from tests.infra.manifests import ROOT
from tests.infra.test_run_entrypoints import SMALLER

DIFFBFR = (sys.executable, "-c", "from pipelines.cli import main; main()")
FIXED_ORDER = [f"{stage}.training.reduce_leaves=2" for stage in ("irm1", "irm2", "tem")]
"""With it, weights do not depend on the number of ranks."""
_CONTENT = (".tar", ".safetensors", ".png", ".csv", "samples.parquet")


def run_words(root: str, tracking: str, settings: Sequence[str] = ()) -> list[str]:
    """The words of the command after its name."""
    every = [*SMALLER, f"tracking.uri={tracking}", "cluster.num_workers=2", *settings]
    return ["run", "--recipe", "smoke", "--root", root, *(word for it in every for word in ("--set", it))]


def diffbfr(
    words: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the product on this machine to its end."""
    return subprocess.run(
        [*DIFFBFR, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


def run_here(
    root: str, tracking: Path, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the recipe on this machine, with a registry in SQLite."""
    tracking.mkdir(exist_ok=True)
    return diffbfr(run_words(root, f"sqlite:///{tracking}/mlflow.db", settings), environment)


def contents(root: str) -> dict[str, dict[str, str]]:
    """Step -> output -> digest, of a finished run: of pictures and weights, not of times and addresses."""
    found = {}
    for step in storage.list_dir(storage.join(root, "artifacts")):
        (artifact,) = storage.list_dir(storage.join(root, "artifacts", step))
        record = storage.read_json(storage.join(root, "artifacts", step, artifact, "record.json"))
        found[step] = {
            name: output["sha256"]
            for name, output in record["outputs"].items()
            if output["path"].endswith(_CONTENT)
        }
    return found
