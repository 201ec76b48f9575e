"""A training's curve on disk: kept while it runs, so that a killed training keeps what it told; each step once."""

import time
from dataclasses import asdict

from pipelines import storage
from pipelines.progress import Metrics

_WRITE_EVERY_S = 10.0


class Journal:
    """The posts of a training, as one JSON list that is rewritten every few seconds."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._posts: list[Metrics] = read_journal(place)
        self._written = time.monotonic()

    def add(self, metrics: Metrics) -> None:
        """Keep a post; what an earlier attempt told of the same or later steps gives way."""
        self._posts = [post for post in self._posts if post.step < metrics.step]
        self._posts.append(metrics)
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self.close()

    def close(self) -> None:
        """Write what is there."""
        storage.write_json(self._place, [asdict(post) for post in self._posts])
        self._written = time.monotonic()


def read_journal(place: str) -> list[Metrics]:
    """The posts that were written; none if there is no journal."""
    if not storage.exists(place):
        return []
    return [Metrics(**post) for post in storage.read_json(place)]
