"""A training's curve on disk: kept while it runs, so that a killed training keeps what it told; each step
once.

While it runs the posts lie in segments beside the journal. Only the newest segment is written again as it
fills, so that a post costs the same after a week as in the first minute, also on S3, which cannot append. At
the end all become one file.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

from pipelines import storage
from pipelines.cluster.protocol import Metrics

_WRITE_EVERY_S: Final = 10.0
_SEGMENT_POSTS: Final = 256
_LAST_TRIES: Final = 3
_LAST_PAUSE_S: Final = 1.0


@dataclass(frozen=True)
class MetricRecord:
    """What a training told at a step, and when (ms since 1970)."""

    step: int
    samples: int
    values: Mapping[str, float]
    time_ms: int = 0


class MetricsLog:
    """The posts of a training; a context manager with a thread that writes every few seconds what came.

    `on_metrics` hears of posts once they are on disk, on that thread: who tells them on can repeat them after
    a crash. A disk that refuses (full, or S3 away) is tried again until the end, and then `on_metrics` hears
    all the same: no training fails for its curve.
    """

    def __init__(
        self,
        place: str,
        on_metrics: Callable[[Sequence[MetricRecord]], None] = lambda posts: None,
        every_s: float = _WRITE_EVERY_S,
    ) -> None:
        self._place, self._on_posts, self._every_s = place, on_metrics, every_s
        self._posts = read_metrics_log(place)
        self._told = self._sealed = len(self._posts)
        """How many posts are on disk, and how many in segments that are full."""
        taken = storage.list_dir(_segments(place))
        self._number = 1 + int(taken[-1].removesuffix(".json")) if taken else 0
        self._closing = threading.Event()
        self._well = True
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        for attempt in count(1):
            if self._try(self._write) and (kind is not None or self._try(self._join)):
                return
            if attempt == _LAST_TRIES:
                break
            time.sleep(_LAST_PAUSE_S)
        if self._told < len(self._posts):
            self._on_posts(self._posts[self._told :])

    def add(self, metrics: Metrics) -> None:
        """Keep a post, without waiting for anything; a step that an earlier attempt told of already says
        nothing new.
        """
        if not self._posts or metrics.step > self._posts[-1].step:
            self._posts.append(
                MetricRecord(metrics.step, metrics.samples, metrics.values, int(time.time() * 1000))
            )

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._try(self._write)

    def _try(self, write: Callable[[], None]) -> bool:
        """Whether the disk took it; why it did not is said once, until it does again."""
        try:
            write()
        except (
            Exception
        ) as error:  # every storage client has errors of its own, and each means that nothing was written
            if self._well:
                reason = " ".join(str(error).split()) or type(error).__name__
                logging.getLogger(__name__).warning(
                    "%s cannot be written, it is tried again: %s", self._place, reason
                )
            self._well = False
            return False
        self._well = True
        return True

    def _write(self) -> None:
        """Write the segment under way, and begin the next when it is full."""
        while self._told < len(self._posts):
            segment = self._posts[self._sealed : self._sealed + _SEGMENT_POSTS]
            _write_posts(storage.join(_segments(self._place), f"{self._number:06d}.json"), segment)
            new, self._told = segment[self._told - self._sealed :], self._sealed + len(segment)
            if len(segment) == _SEGMENT_POSTS:
                self._sealed, self._number = self._told, self._number + 1
            self._on_posts(new)

    def _join(self) -> None:
        """Make one file of all segments."""
        _write_posts(self._place, self._posts)
        storage.remove_tree(_segments(self._place))


def read_metrics_log(place: str) -> list[MetricRecord]:
    """The posts that were written, by step; none if there is no journal."""
    files = [place] if storage.exists(place) else []
    files += [storage.join(_segments(place), name) for name in storage.list_dir(_segments(place))]
    posts: list[MetricRecord] = []
    for file in files:
        written: list[dict[str, Any]] = storage.read_json(file)
        posts += [MetricRecord(**post) for post in written if not posts or post["step"] > posts[-1].step]
    return posts


def _segments(place: str) -> str:
    return place.removesuffix(".json")


def _write_posts(place: str, posts: Sequence[MetricRecord]) -> None:
    storage.write_json(place, [asdict(post) for post in posts])
