"""Samples in the order of a run, a batch at a time, split over ranks and read ahead by threads; what there is
to resume is a position.

Threads are enough, for hashing and decoding release the interpreter's lock, and a killed loader leaves
nothing behind: no process, no shared memory.
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
from diffbfr.shards.order import position as row_at
from diffbfr.shards.schema import Split
from diffbfr.spec import from_dict

T = TypeVar("T")

_AHEAD: Final = 4


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """One sample: `position` counts over all ranks and epochs; `padding` marks those that only make the
    ranks' shares of a batch equal.
    """

    position: int
    key: str
    padding: bool
    value: T


@dataclass(frozen=True)
class LoaderState:
    """Where a loader is, and in the order of what: `position` is the first of the next batch, whatever the
    ranks, readers and batch.
    """

    position: int
    seed: int
    split: Split
    content_id: str

    def to_json(self) -> str:
        """Text of some 150 bytes, to be kept beside a checkpoint."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "LoaderState":
        """Read what `to_json` wrote; UsageError if it is something else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(
                f"the loader's state is no JSON ({error}); expected what `LoaderState.to_json` wrote; start "
                "anew"
            ) from error
        return from_dict(LoaderState, values, "the loader's state")


class SampleLoader(Generic[T]):
    """One rank's shares of the batches of a run, without end: every key of the split is shown once an epoch
    over all ranks.

    The s-th batch from `position` on holds the next `batch` positions of the run's order (`order.position`),
    whatever the ranks, of which each takes a contiguous share; where `batch` does not divide by `ranks`, the
    last shares end with its first positions again, marked as padding. `read(key, position)` makes a sample,
    in one of `readers` threads (0: in the caller's). `position` resumes at once with any ranks, readers and
    batch: a number, or the `state` of another loader, which is refused if it belongs to other samples or
    another order. `keys` are those of the split to show; all of them without.
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
        self._keys, self._read = dataset.keys(split) if keys is None else list(keys), read
        if not self._keys:
            raise UsageError(
                f"the dataset in {dataset.root} has no {split} samples; expected at least one; choose "
                "another split"
            )
        self._seed, self._batch, self._rank, self._readers = seed, batch, rank, readers
        self._share = -(-batch // ranks)
        self.position = position
        """The first position of the next batch: all that is needed to go on."""

    @property
    def state(self) -> LoaderState:
        """What to keep to go on, with what says that it is gone on with the same samples in the same
        order.
        """
        return replace(self._origin, position=self.position)

    def __iter__(self) -> Generator[list[Loaded[T]], None, None]:
        """Yield this rank's share of each batch; close the iterator to end its threads."""
        samples = self._ahead(self._wanted(self.position))
        try:
            while True:
                share = list(islice(samples, self._share))
                self.position += self._batch
                yield share
        finally:
            samples.close()

    def _wanted(self, first: int) -> Iterator[tuple[int, str, bool]]:
        mine = range(self._rank * self._share, (self._rank + 1) * self._share)
        for start in count(first, self._batch):
            for place in mine:
                at = start + place % self._batch
                yield at, self._keys[row_at(self._seed, at, len(self._keys))], place >= self._batch

    def _ahead(self, wanted: Iterator[tuple[int, str, bool]]) -> Generator[Loaded[T], None, None]:
        if self._readers == 0:
            for at, key, padding in wanted:
                yield Loaded(at, key, padding, self._read(key, at))
            return
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix="diffbfr-loader")
        waiting: deque[tuple[int, str, bool, Future[T]]] = deque()
        depth = max(self._share, _AHEAD * self._readers)
        try:
            for at, key, padding in wanted:
                waiting.append((at, key, padding, pool.submit(self._read, key, at)))
                if len(waiting) > depth:
                    at, key, padding, value = waiting.popleft()
                    yield Loaded(at, key, padding, value.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _continue(state: LoaderState, origin: LoaderState, root: str) -> int:
    """The position of a state; UsageError unless it was kept of the same dataset, split and seed."""
    for name in ("content_id", "split", "seed"):
        kept, here = getattr(state, name), getattr(origin, name)
        if kept != here:
            raise UsageError(
                f"the loader's state is of {name} {kept}, the loader of {root} has {here}; expected the "
                "same; use those or start anew"
            )
    return state.position
