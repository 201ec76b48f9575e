"""What is exported for Prometheus, judged by a double of Ray's metrics; `tests/infra` scrapes the real ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import ray

from pipelines.cluster import metrics as exported
from pipelines.cluster.metrics import NAMES, MetricsExporter
from pipelines.cluster.pool import Collector
from pipelines.cluster.protocol import Metrics, ReportCounts, RestartStats
from pipelines.cluster.trainer import MetricForwarder
from pipelines.progress import Progress
from pipelines.steps.shard import ShardReport


class Recorded(dict[tuple[str, ...], float]):
    """Values by name and labels; refuses what Ray refuses."""

    def metric(self, name: str) -> "_Metric":
        return _Metric(self, name)


@dataclass
class _Metric:
    recorded: Recorded
    name: str

    def _key(self, tags: Mapping[str, str]) -> tuple[str, ...]:
        assert tuple(tags) == NAMES[self.name][1], "Ray takes the declared labels only"
        return (self.name, *tags.values())

    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        assert NAMES[self.name][0] == "counter"
        assert value > 0
        self.recorded[self._key(tags)] = self.recorded.get(self._key(tags), 0.0) + value

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        assert NAMES[self.name][0] == "gauge"
        self.recorded[self._key(tags)] = value


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(exported, "_metric", found.metric)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return found


def test_a_task_counts_its_work_and_its_outcomes(recorded: Recorded) -> None:
    with Progress("shard", 8, "img") as progress:
        collector = Collector[int, ShardReport](
            "shard", [0, 1], lambda task: 4, progress, None, MetricsExporter("shard", enabled=True)
        )
        assert [collector.take(), collector.take()] == [(0, 0), (1, 1)]
        collector.succeed(0, ShardReport(0, committed=3, quarantined=1, skipped=False, seconds=1.0, faces=5))
        collector.succeed(1, ShardReport(1, committed=4, quarantined=0, skipped=True, seconds=0.0, faces=4))

    assert recorded == {
        ("diffbfr_done", "shard", "img"): 8,
        ("diffbfr_outcomes", "shard", "committed"): 3,
        ("diffbfr_outcomes", "shard", "quarantined"): 1,
        ("diffbfr_faces", "shard"): 5,
    }


def test_failed_tasks_and_dead_workers_are_counted(recorded: Recorded) -> None:
    with Progress("restore", 1) as progress:
        collector = Collector[int, int](
            "restore", [0], lambda task: 1, progress, None, MetricsExporter("restore", enabled=True)
        )
        collector.metrics.worker_died()
        assert collector.take() == (0, 0)
        collector.fail(0, ValueError("no"))
    assert recorded == {("diffbfr_worker_deaths", "restore"): 1, ("diffbfr_tasks_failed", "restore"): 1}


def test_a_training_counts_each_sample_once_and_not_those_of_an_earlier_run(recorded: Recorded) -> None:
    with Progress("irm1", 400, "img") as progress:
        forwarder = MetricForwarder(progress, None, MetricsExporter("irm1", enabled=True))
        for step, samples in ((10, 100), (20, 200), (15, 150), (20, 200), (30, 300)):
            forwarder.forward(Metrics(step, samples, {"loss": 0.5, "data_share": 0.25, "skipped": 0}))
        forwarder.exporter.restart_stats(RestartStats(1, 0.75))

    assert recorded == {
        ("diffbfr_done", "irm1", "img"): 200,
        ("diffbfr_loss", "irm1"): 0.5,
        ("diffbfr_data_wait", "irm1"): 0.25,
        ("diffbfr_restarts", "irm1"): 1,
        ("diffbfr_goodput", "irm1"): 0.75,
    }


def test_nothing_is_exported_without_a_joined_cluster(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MetricsExporter("shard", enabled=False)
    exporter.done(3, "img")
    exporter.report(ReportCounts({"restored": 1}))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    MetricsExporter("shard", enabled=True).done(3, "img")
    assert recorded == {}
