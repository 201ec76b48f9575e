"""A training's curve on disk: kept while it runs, so that a killed training keeps what it told; each step once."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Final, Self

from pipelines import storage
from pipelines.progress import Metrics

_WRITE_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class Post:
    """What a training told at a step, and when (ms since 1970)."""

    step: int
    samples: int
    values: Mapping[str, float]
    time_ms: int = 0


class Journal:
    """The posts of a training, as one JSON list that a thread rewrites every few seconds; a context manager.

    `on_posts` hears of posts once they are on disk, on that thread: who tells them on can repeat them after a crash.
    """

    def __init__(
        self, place: str, on_posts: Callable[[Sequence[Post]], None] = lambda posts: None, every_s: float = _WRITE_EVERY_S
    ) -> None:
        self._place, self._on_posts, self._every_s = place, on_posts, every_s
        self._posts = read_journal(place)
        self._told = len(self._posts)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join()

    def add(self, metrics: Metrics) -> None:
        """Keep a post, without waiting for anything; a step that an earlier attempt told of already says nothing new."""
        if not self._posts or metrics.step > self._posts[-1].step:
            self._posts.append(Post(metrics.step, metrics.samples, metrics.values, int(time.time() * 1000)))

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._write()
        self._write()

    def _write(self) -> None:
        posts = list(self._posts)
        if len(posts) > self._told or not storage.exists(self._place):
            storage.write_json(self._place, [asdict(post) for post in posts])
            self._on_posts(posts[self._told :])
            self._told = len(posts)


def read_journal(place: str) -> list[Post]:
    """The posts that were written; none if there is no journal."""
    if not storage.exists(place):
        return []
    return [Post(**post) for post in storage.read_json(place)]
