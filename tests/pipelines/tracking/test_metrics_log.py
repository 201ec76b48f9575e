"""A training's metrics are on disk before they are sent on, each step once."""

import threading
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cluster.protocol import Metrics
from pipelines.tracking import metrics_log
from pipelines.tracking.metrics_log import MetricRecord, MetricsLog, read_metrics_log


def test_records_are_on_disk_before_they_are_sent_on(tmp_path: Path) -> None:
    place, received = str(tmp_path / "metrics.json"), list[MetricRecord]()
    some = threading.Event()

    def receive(records: "list[MetricRecord]") -> None:
        assert set(map(repr, records)) <= set(map(repr, read_metrics_log(place)))
        received.extend(records)
        some.set()

    with MetricsLog(place, receive, every_s=0.01) as log:  # type: ignore[arg-type]
        log.add(Metrics(1, 8, {"loss": 0.5}))
        assert some.wait(30)
        log.add(Metrics(2, 16, {"loss": 0.4}))
    assert (
        [record.step for record in received] == [record.step for record in read_metrics_log(place)] == [1, 2]
    )
    assert all(record.time_ms > 0 for record in received)


def test_a_resumed_training_records_no_step_twice(tmp_path: Path) -> None:
    place = str(tmp_path / "metrics.json")
    for steps in ((1, 2, 3), (2, 3, 4)):
        with MetricsLog(place) as log:
            for step in steps:
                log.add(Metrics(step, 8 * step, {"loss": 1.0 / step}))
    assert [record.step for record in read_metrics_log(place)] == [1, 2, 3, 4]


def test_a_training_without_metrics_leaves_a_log_too(tmp_path: Path) -> None:
    with MetricsLog(str(tmp_path / "metrics.json")):
        pass
    assert read_metrics_log(str(tmp_path / "metrics.json")) == []
    assert (tmp_path / "metrics.json").exists()


def steps_of(place: Path) -> list[int]:
    return [record.step for record in read_metrics_log(str(place))]


def test_a_record_costs_the_same_however_many_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_log, "_SEGMENT_RECORDS", 4)
    sizes: list[int] = []
    true_write = storage.write_json

    def write(place: str, records: list[object]) -> bool:
        sizes.append(len(records))
        return true_write(place, records)

    monkeypatch.setattr(storage, "write_json", write)
    place = tmp_path / "metrics.json"
    killed = MetricsLog(str(place))
    for step in range(1, 11):
        killed.add(Metrics(step, step, {}))
        killed._write()
        assert steps_of(place) == list(range(1, step + 1))
    assert sizes == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == [
        "000000.json",
        "000001.json",
        "000002.json",
    ]
    with MetricsLog(str(place)) as log:
        for step in range(8, 14):
            log.add(Metrics(step, step, {}))
    assert steps_of(place) == list(range(1, 14))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]  # one file at the end
    assert sizes[-1] == 13


@pytest.mark.parametrize("ends", [True, False])
def test_a_failing_disk_loses_no_record_and_fails_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    """Full in the middle; until the end, if the outage does not end before."""
    place, received, refused = tmp_path / "metrics.json", list[int](), threading.Event()
    monkeypatch.setattr(metrics_log, "_LAST_PAUSE_S", 0.01)
    true_write, full = storage.write_json, [True]

    def write(file: str, records: list[object]) -> bool:
        if full[0]:
            refused.set()
            raise OSError(28, "No space left on device")
        return true_write(file, records)

    with MetricsLog(
        str(place), lambda records: received.extend(record.step for record in records), every_s=0.01
    ) as log:
        log.add(Metrics(1, 8, {"loss": 1.0}))
        while steps_of(place) != [1]:
            threading.Event().wait(0.01)
        monkeypatch.setattr(storage, "write_json", write)
        log.add(Metrics(2, 16, {"loss": 0.5}))
        assert refused.wait(30)
        full[0] = not ends
        log.add(Metrics(3, 24, {"loss": 0.3}))
    assert received == [1, 2, 3]
    assert steps_of(place) == ([1, 2, 3] if ends else [1])
    assert place.exists() == ends
    assert caplog.text.count("No space left on device") == 1
