"""A training's posts are on disk before anyone else hears of them, each step once."""

import threading
from pathlib import Path

from pipelines.flows.journal import Journal, Post, read_journal
from pipelines.progress import Metrics


def test_posts_are_on_disk_before_they_are_heard(tmp_path: Path) -> None:
    place, heard = str(tmp_path / "journal.json"), list[Post]()
    some = threading.Event()

    def hear(posts: "list[Post]") -> None:
        assert set(map(repr, posts)) <= set(map(repr, read_journal(place)))
        heard.extend(posts)
        some.set()

    with Journal(place, hear, every_s=0.01) as journal:  # type: ignore[arg-type]
        journal.add(Metrics(1, 8, {"loss": 0.5}))
        assert some.wait(30)
        journal.add(Metrics(2, 16, {"loss": 0.4}))
    assert [post.step for post in heard] == [post.step for post in read_journal(place)] == [1, 2]
    assert all(post.time_ms > 0 for post in heard)


def test_a_resumed_training_says_nothing_twice(tmp_path: Path) -> None:
    place = str(tmp_path / "journal.json")
    for steps in ((1, 2, 3), (2, 3, 4)):
        with Journal(place) as journal:
            for step in steps:
                journal.add(Metrics(step, 8 * step, {"loss": 1.0 / step}))
    assert [post.step for post in read_journal(place)] == [1, 2, 3, 4]


def test_a_training_without_a_post_leaves_a_journal_too(tmp_path: Path) -> None:
    with Journal(str(tmp_path / "journal.json")):
        pass
    assert read_journal(str(tmp_path / "journal.json")) == []
    assert (tmp_path / "journal.json").exists()
