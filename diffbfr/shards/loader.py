"""Samples in the order of a run, split over ranks and read ahead by threads; nothing is shared, and the whole state is one position.

Threads are enough, for decoding releases the interpreter's lock, and a killed loader leaves nothing behind: no process, no shared memory.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from diffbfr.errors import UsageError
from diffbfr.shards.dataset import ShardedDataset
from diffbfr.shards.order import epoch_order
from diffbfr.shards.schema import Split

T = TypeVar("T")

_AHEAD: Final = 4


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """One sample: `position` counts over all ranks and epochs; `padding` marks those that only make the ranks' shares of an epoch equal."""

    position: int
    key: str
    padding: bool
    value: T


class SampleLoader(Generic[T]):
    """One rank's share of the samples of a split, an epoch an iteration.

    `read(key, position)` makes a sample, in one of `workers` threads (0: in the caller's). An epoch shows every key once over all ranks;
    where it does not divide by `ranks`, the last ranks get its first keys again, marked as padding. All ranks are expected to take
    the same number of samples before `state` is kept; it then resumes any number of ranks at once.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        split: Split,
        read: Callable[[str, int], T],
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        state: Mapping[str, int | str] | None = None,
    ) -> None:
        if not 0 <= rank < ranks or workers < 0:
            raise UsageError(f"rank {rank} of {ranks} with {workers} workers; expected 0 <= rank < ranks and no negative number")
        self._keys, self._read = dataset.keys(split), read
        if not self._keys:
            raise UsageError(f"the dataset in {dataset.root} has no {split} samples; expected at least one; choose another split")
        self._rank, self._ranks, self._workers = rank, ranks, workers
        self._order: dict[str, int | str] = {"seed": seed, "split": split, "content_id": dataset.info.content_id}
        self._position = 0 if state is None else self._resume(state)

    @property
    def state(self) -> dict[str, int | str]:
        """What resumes this order after the samples yielded so far; plain values, some 120 bytes as JSON."""
        return {**self._order, "position": self._position}

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next sample belongs to."""
        return self._position // len(self._keys)

    def __iter__(self) -> Iterator[Loaded[T]]:
        """Yield the rest of the epoch."""
        n, start = len(self._keys), self._position
        end = (start // n + 1) * n
        order = epoch_order(int(self._order["seed"]), start // n, n)
        steps = -(-(end - start) // self._ranks)
        shares = (start + step * self._ranks + self._rank for step in range(steps))
        wanted = ((p, self._keys[order[p % n]], p >= end) for p in shares)
        for place, loaded in enumerate(self._ahead(wanted)):
            self._position = min(start + (place + 1) * self._ranks, end)
            yield loaded

    def _ahead(self, wanted: Iterator[tuple[int, str, bool]]) -> Iterator[Loaded[T]]:
        if self._workers == 0:
            for position, key, padding in wanted:
                yield Loaded(position, key, padding, self._read(key, position))
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="diffbfr-loader")
        waiting: deque[tuple[int, str, bool, Future[T]]] = deque()
        try:
            for position, key, padding in wanted:
                waiting.append((position, key, padding, pool.submit(self._read, key, position)))
                if len(waiting) > _AHEAD * self._workers:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _resume(self, state: Mapping[str, int | str]) -> int:
        for name, value in self._order.items():
            if state.get(name) != value:
                raise UsageError(f"the loader's state has {name} {state.get(name)!r}, this loader {value!r}; expected the same; start anew")
        return int(state["position"])


def order_digest(dataset: ShardedDataset, split: Split, seed: int, epoch: int) -> str:
    """Return the sha256 of the keys of an epoch in their order: equal wherever the same samples are shown in the same order."""
    keys = dataset.keys(split)
    return digest_keys(keys[row] for row in epoch_order(seed, epoch, len(keys)).tolist())


def digest_keys(keys: Iterator[str]) -> str:
    """Return the sha256 of keys in the order given."""
    summer = hashlib.sha256()
    for key in keys:
        summer.update(f"{key}\n".encode())
    return summer.hexdigest()


def _finished(item: tuple[int, str, bool, Future[T]]) -> Loaded[T]:
    position, key, padding, future = item
    return Loaded(position, key, padding, future.result())
