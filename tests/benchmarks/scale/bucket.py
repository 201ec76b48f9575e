"""A bucket on simulated time: latency, a limit of requests a second, times when it is slow or away.

A request is retried as `pipelines.storage.s3` does it, with its number of tries and pauses.
"""

from collections import Counter
from dataclasses import dataclass, field

from pipelines.storage import s3
from pipelines.storage.errors import TransportError


@dataclass(frozen=True)
class Trouble:
    """From `start` for `length` seconds the bucket is `slowdown` times slower; away if that is infinite."""

    start: float
    length: float
    slowdown: float = float("inf")

    def holds(self, at: float) -> bool:
        return self.start <= at < self.start + self.length


@dataclass
class Bucket:
    """Times of requests; `rate_limit` is what it answers in a second before it says SlowDown."""

    latency_s: float = 0.03
    rate_limit: float = 5500.0
    troubles: tuple[Trouble, ...] = ()
    requests: int = 0
    refused: int = 0
    _in_second: Counter[int] = field(default_factory=Counter)

    def request(self, at: float) -> float:
        """When a request that begins at `at` is answered; TransportError, with its time, after all tries."""
        for attempt in range(s3._TRIES):
            self.requests += 1
            trouble = next((it for it in self.troubles if it.holds(at)), None)
            slowdown = 1.0 if trouble is None else trouble.slowdown
            self._in_second[int(at)] += 1
            within = self._in_second[int(at)] <= self.rate_limit / min(slowdown, 1e9)
            if within and slowdown < float("inf"):
                return at + self.latency_s * slowdown
            self.refused += 1
            at += self.latency_s
            if attempt + 1 < s3._TRIES:
                at += s3._PAUSE_S * 2**attempt
        raise BucketError(at)


class BucketError(TransportError):
    """All tries of a request failed; the last one at `at`."""

    def __init__(self, at: float) -> None:
        super().__init__("the bucket is away")
        self.at = at
