"""Samples in the order of a run, a batch at a time, split over ranks and prefetched by threads.

The state to resume from is one position. Threads suffice because hashing and decoding release the
interpreter's lock, and a killed loader leaves no process and no shared memory behind.
"""

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Final, Generic, TypeVar

from diffbfr.errors import UsageError
from diffbfr.shards.dataset import ShardedDataset
from diffbfr.shards.order import row_at
from diffbfr.shards.schema import Split
from diffbfr.spec import from_dict

T = TypeVar("T")

_PREFETCH: Final = 4
"""Samples that are read ahead per reader thread."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """One sample: `position` counts over all ranks and epochs.

    `padding` marks a repeated sample that only makes the ranks' shares of a batch equal.
    """

    position: int
    key: str
    padding: bool
    value: T


@dataclass(frozen=True)
class LoaderState:
    """The state of a loader: `position` is the first of its next batch, for any ranks, readers and batch.

    The other fields identify the order of samples that the position belongs to.
    """

    position: int
    seed: int
    split: Split
    content_id: str

    def to_json(self) -> str:
        """Encode the state in some 150 bytes, to be stored with a checkpoint."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "LoaderState":
        """Decode what `to_json` wrote; UsageError if it is something else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(
                f"the loader's state is no JSON ({error}); expected what `LoaderState.to_json` wrote; start "
                "anew"
            ) from error
        return from_dict(LoaderState, values, "the loader's state")


class SampleLoader(Generic[T]):
    """One rank's share of each batch of an endless run; over all ranks every key comes once per epoch.

    A batch holds the next `batch` positions of the run's order (`order.row_at`) for any number of ranks, and
    each rank takes a contiguous share. Where `ranks` does not divide `batch`, the last shares end with the
    first positions of the batch again, marked as padding. `read(key, position)` makes a sample, in one of
    `readers` threads (0: in the caller's). `position` resumes at once with any ranks, readers and batch size:
    it is a number, or the `state` of another loader, which is refused if it belongs to other samples or
    another order. `keys` are the keys of the split to use; all of them by default.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        split: Split,
        read: Callable[[str, int], T],
        *,
        seed: int,
        batch: int,
        position: int | LoaderState = 0,
        rank: int = 0,
        ranks: int = 1,
        readers: int = 0,
        keys: Sequence[str] | None = None,
    ) -> None:
        self._origin = LoaderState(0, seed, split, dataset.info.content_id)
        if isinstance(position, LoaderState):
            position = _continue(position, self._origin, str(dataset.root))
        if not 0 <= rank < ranks or readers < 0:
            raise UsageError(
                f"rank {rank} of {ranks} with {readers} readers; expected 0 <= rank < ranks and no negative "
                "number"
            )
        if batch < 1 or position < 0:
            raise UsageError(
                f"batches of {batch} from position {position} on; expected at least one sample, and no "
                "negative position"
            )
        self._keys = dataset.keys(split) if keys is None else list(keys)
        self._read = read
        if not self._keys:
            raise UsageError(
                f"the dataset in {dataset.root} has no {split} samples; expected at least one; choose "
                "another split"
            )
        self._seed = seed
        self._batch = batch
        self._rank = rank
        self._readers = readers
        self._share = -(-batch // ranks)
        self.position = position
        """The first position of the next batch."""

    @property
    def state(self) -> LoaderState:
        """The state to resume from: the position and the identity of the order that it belongs to."""
        return replace(self._origin, position=self.position)

    def __iter__(self) -> Generator[list[Loaded[T]], None, None]:
        """Yield this rank's share of each batch; closing the iterator ends its threads."""
        samples = self._prefetch(self._schedule(self.position))
        try:
            while True:
                share = list(islice(samples, self._share))
                self.position += self._batch
                yield share
        finally:
            samples.close()

    def _schedule(self, first: int) -> Iterator[tuple[int, str, bool]]:
        """Yield position, key and padding of this rank's samples from the batch that begins at `first`."""
        share = range(self._rank * self._share, (self._rank + 1) * self._share)
        for start in count(first, self._batch):
            for slot in share:
                position = start + slot % self._batch
                key = self._keys[row_at(self._seed, position, len(self._keys))]
                yield position, key, slot >= self._batch

    def _prefetch(self, schedule: Iterator[tuple[int, str, bool]]) -> Generator[Loaded[T], None, None]:
        if self._readers == 0:
            for position, key, padding in schedule:
                yield Loaded(position, key, padding, self._read(key, position))
            return
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix="diffbfr-loader")
        queue: deque[tuple[int, str, bool, Future[T]]] = deque()
        depth = max(self._share, _PREFETCH * self._readers)
        try:
            for position, key, padding in schedule:
                queue.append((position, key, padding, pool.submit(self._read, key, position)))
                if len(queue) > depth:
                    position, key, padding, value = queue.popleft()
                    yield Loaded(position, key, padding, value.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _continue(state: LoaderState, origin: LoaderState, root: str) -> int:
    """The position of a state; UsageError unless it is of the same dataset, split and seed as `origin`."""
    for name in ("content_id", "split", "seed"):
        found = getattr(state, name)
        expected = getattr(origin, name)
        if found != expected:
            raise UsageError(
                f"the loader's state is of {name} {found}, the loader of {root} has {expected}; expected the "
                "same; use those or start anew"
            )
    return state.position
