"""A training's posts are on disk before anyone else hears of them, each step once."""

import threading
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cluster.protocol import Metrics
from pipelines.tracking import metrics_log as journals
from pipelines.tracking.metrics_log import MetricRecord, MetricsLog, read_metrics_log


def test_posts_are_on_disk_before_they_are_heard(tmp_path: Path) -> None:
    place, heard = str(tmp_path / "metrics.json"), list[MetricRecord]()
    some = threading.Event()

    def hear(posts: "list[MetricRecord]") -> None:
        assert set(map(repr, posts)) <= set(map(repr, read_metrics_log(place)))
        heard.extend(posts)
        some.set()

    with MetricsLog(place, hear, every_s=0.01) as journal:  # type: ignore[arg-type]
        journal.add(Metrics(1, 8, {"loss": 0.5}))
        assert some.wait(30)
        journal.add(Metrics(2, 16, {"loss": 0.4}))
    assert [post.step for post in heard] == [post.step for post in read_metrics_log(place)] == [1, 2]
    assert all(post.time_ms > 0 for post in heard)


def test_a_resumed_training_says_nothing_twice(tmp_path: Path) -> None:
    place = str(tmp_path / "metrics.json")
    for steps in ((1, 2, 3), (2, 3, 4)):
        with MetricsLog(place) as journal:
            for step in steps:
                journal.add(Metrics(step, 8 * step, {"loss": 1.0 / step}))
    assert [post.step for post in read_metrics_log(place)] == [1, 2, 3, 4]


def test_a_training_without_a_post_leaves_a_journal_too(tmp_path: Path) -> None:
    with MetricsLog(str(tmp_path / "metrics.json")):
        pass
    assert read_metrics_log(str(tmp_path / "metrics.json")) == []
    assert (tmp_path / "metrics.json").exists()


def steps_of(place: Path) -> list[int]:
    return [post.step for post in read_metrics_log(str(place))]


def test_a_post_costs_the_same_however_many_were_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_SEGMENT_POSTS", 4)
    sizes: list[int] = []
    true_write = storage.write_json

    def write(place: str, posts: list[object]) -> bool:
        sizes.append(len(posts))
        return true_write(place, posts)

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
    with MetricsLog(str(place)) as journal:
        for step in range(8, 14):
            journal.add(Metrics(step, step, {}))
    assert steps_of(place) == list(range(1, 14))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]  # one file at the end
    assert sizes[-1] == 13


@pytest.mark.parametrize("ends", [True, False])
def test_a_disk_that_refuses_loses_nothing_and_fails_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    """Full in the middle; until the end, if the outage does not end before."""
    place, heard, refused = tmp_path / "metrics.json", list[int](), threading.Event()
    monkeypatch.setattr(journals, "_LAST_PAUSE_S", 0.01)
    true_write, full = storage.write_json, [True]

    def write(file: str, posts: list[object]) -> bool:
        if full[0]:
            refused.set()
            raise OSError(28, "No space left on device")
        return true_write(file, posts)

    with MetricsLog(
        str(place), lambda posts: heard.extend(post.step for post in posts), every_s=0.01
    ) as journal:
        journal.add(Metrics(1, 8, {"loss": 1.0}))
        while steps_of(place) != [1]:
            threading.Event().wait(0.01)
        monkeypatch.setattr(storage, "write_json", write)
        journal.add(Metrics(2, 16, {"loss": 0.5}))
        assert refused.wait(30)
        full[0] = not ends
        journal.add(Metrics(3, 24, {"loss": 0.3}))
    assert heard == [1, 2, 3]
    assert steps_of(place) == ([1, 2, 3] if ends else [1])
    assert place.exists() == ends
    assert caplog.text.count("No space left on device") == 1
