"""How long a training is away: after a worker was killed, after all were, and after one that was stopped, at
the default patience.

`.venv/bin/python -m tests.benchmarks.recovery` prints seconds by the clock of a tiny training on two workers;
it wants a machine with nothing else to do. `--hang-s` is the patience with a worker that gives no sign.
"""

import argparse
import logging
import signal
import tempfile
from pathlib import Path

from pipelines.cluster import Cluster, ClusterConfig
from tests.diffbfr.tiny import make_dataset
from tests.pipelines.trouble import Trouble, Troubled, task_in, train_in_trouble

TROUBLES = {
    "one of two killed": Trouble(6, (1,), signal.SIGKILL),
    "both killed": Trouble(10, (0, 1), signal.SIGKILL),
    "one of two stopped": Trouble(14, (1,), signal.SIGSTOP),
}


class _Noticed(logging.Handler):
    """When the watchdog found a group hung."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.at.append(record.created)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hang-s", type=float, default=ClusterConfig().hang_s)
    given = parser.parse_args()
    noticed = _Noticed()
    logging.getLogger("pipelines.cluster.watchdog").addHandler(noticed)
    with (
        tempfile.TemporaryDirectory() as name,
        Cluster(ClusterConfig(num_workers=2, hang_s=given.hang_s)) as cluster,
    ):
        folder = Path(name)
        make_dataset(folder / "data")
        (folder / "marks").mkdir()
        task = task_in(str(folder / "run"), str(folder / "data"))
        troubled = Troubled(task, tuple(TROUBLES.values()), str(folder / "marks"))
        report = cluster.train(
            train_in_trouble, troubled, label="irm1", total=task.config.num_samples, root=name
        )
        begins = [at for _, at in troubled.begins()[1:]]
        for what, struck, again in zip(TROUBLES, troubled.struck(), begins, strict=True):
            seen = f", noticed after {noticed.at[0] - struck:.1f} s" if "stopped" in what else ""
            print(f"{what}: a step again after {again - struck:.1f} s{seen}")
    print(f"restarts {report.restarts}, goodput {report.goodput:.3f}")


if __name__ == "__main__":
    main()
