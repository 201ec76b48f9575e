"""Metrics of the work for Prometheus, by Ray's metrics agent of the node on which the driver runs.

Ray serves them at the port that `ray start --metrics-export-port` names, each with the prefix `ray_`, and
counters with the suffix `_total`. Only a joined cluster has that agent: a Ray of our own collects no metrics.
`infra/monitoring` draws `NAMES` and alerts on them.
"""

import threading
from collections.abc import Mapping
from typing import Any, Final, Literal

from pipelines.cluster.protocol import CountedReport, RestartStats

Kind = Literal["counter", "gauge"]

NAMES: Final[Mapping[str, tuple[Kind, tuple[str, ...], str]]] = {
    "diffbfr_done": ("counter", ("work", "unit"), "Units of work done: photos, faces, training samples."),
    "diffbfr_outcomes": ("counter", ("work", "outcome"), "Photos by outcome: restored, quarantined, ..."),
    "diffbfr_faces": ("counter", ("work",), "Faces of finished photos."),
    "diffbfr_tasks_failed": ("counter", ("work",), "Tasks that failed for good in this run."),
    "diffbfr_worker_deaths": ("counter", ("work",), "Actors that died and were replaced."),
    "diffbfr_restarts": ("gauge", ("work",), "How often a training was started again."),
    "diffbfr_goodput": ("gauge", ("work",), "Share of a training's time that made new steps, in [0, 1]."),
    "diffbfr_loss": ("gauge", ("work",), "Mean loss of the last window of steps."),
    "diffbfr_images_per_s": ("gauge", ("work",), "Training samples per second of the last window."),
    "diffbfr_data_wait": ("gauge", ("work",), "Share of a window's time spent waiting for data, in [0, 1]."),
    "diffbfr_write_wait": ("gauge", ("work",), "Share spent waiting for the checkpoint writer, in [0, 1]."),
}
"""Name -> kind, labels and description; `work` is the label of the progress line."""

_TRAINING_GAUGES: Final = {
    "loss": "diffbfr_loss",
    "images_per_s": "diffbfr_images_per_s",
    "data_share": "diffbfr_data_wait",
    "write_share": "diffbfr_write_wait",
}


class MetricsExporter:
    """Exports what one work does; does nothing unless `enabled`, and then only while Ray is connected."""

    def __init__(self, work: str, enabled: bool) -> None:
        self._work = work
        self.enabled = enabled

    def done(self, num: int, unit: str) -> None:
        """Count units that were done for the first time."""
        self._record("diffbfr_done", num, unit=unit)

    def report(self, report: object) -> None:
        """Count the photos and faces of a task's report, if it tells them."""
        if self.enabled and isinstance(report, CountedReport):
            counts = report.counts()
            for outcome, num in counts.outcomes.items():
                self._record("diffbfr_outcomes", num, outcome=outcome)
            self._record("diffbfr_faces", counts.faces)

    def task_failed(self) -> None:
        """Count a task that failed for good."""
        self._record("diffbfr_tasks_failed", 1)

    def worker_died(self) -> None:
        """Count an actor that is replaced."""
        self._record("diffbfr_worker_deaths", 1)

    def training_metrics(self, values: Mapping[str, float]) -> None:
        """Set the gauges of a training from the metrics that its rank 0 reports."""
        for name, gauge in _TRAINING_GAUGES.items():
            if name in values:
                self._record(gauge, values[name])

    def restart_stats(self, stats: RestartStats) -> None:
        """Set how often a training was restarted, and its goodput."""
        self._record("diffbfr_restarts", stats.restarts)
        self._record("diffbfr_goodput", stats.goodput)

    def _record(self, name: str, value: float, **labels: str) -> None:
        if not self.enabled:
            return
        import ray

        if not ray.is_initialized():
            return
        metric, kind = _metric(name), NAMES[name][0]
        tags = {"work": self._work, **labels}
        if kind == "gauge":
            metric.set(float(value), tags=tags)
        elif value > 0:  # Ray refuses an increment of 0
            metric.inc(float(value), tags=tags)


_metrics: dict[str, Any] = {}
_lock = threading.Lock()


def _metric(name: str) -> Any:
    """The metric of a process; Ray takes each name once."""
    from ray.util.metrics import Counter, Gauge

    with _lock:
        if name not in _metrics:
            kind, labels, description = NAMES[name]
            make: Any = Counter if kind == "counter" else Gauge
            _metrics[name] = make(name, description=description, tag_keys=labels)
        return _metrics[name]
