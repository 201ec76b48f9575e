"""Whatever the ranks and readers, the same samples in the same order, once an epoch; a position resumes at
once, and nothing is shared.
"""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.shards import Loaded, LoaderState, SampleLoader, ShardDamagedError, ShardedDataset, epoch_order
from pipelines.dataset.manifest import open_dataset
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos

ROOT = Path(__file__).parents[3]
WORLDS = [(1, 0), (2, 1), (4, 2), (7, 0), (7, 2), (3, 1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty faces, most of them for training."""
    folder = tmp_path_factory.mktemp("loader")
    build(make_photos(folder / "photos", 30), folder / "data", CONFIG)
    return folder / "data"


@pytest.fixture
def dataset(root: Path) -> ShardedDataset:
    return open_dataset(root)


def _load(
    dataset: ShardedDataset, ranks: int, readers: int, batches: int, batch: int, position: int = 0
) -> list[list[list[Loaded[str]]]]:
    """The first batches of every rank from a position on."""
    return [
        list(
            islice(
                _loader(dataset, batch=batch, rank=rank, ranks=ranks, readers=readers, position=position),
                batches,
            )
        )
        for rank in range(ranks)
    ]


def _loader(
    dataset: ShardedDataset,
    *,
    batch: int,
    rank: int = 0,
    ranks: int = 1,
    readers: int = 0,
    position: int | LoaderState = 0,
) -> SampleLoader[str]:
    return SampleLoader(
        dataset,
        "train",
        lambda key, _: key,
        seed=5,
        batch=batch,
        position=position,
        rank=rank,
        ranks=ranks,
        readers=readers,
    )


def _in_order(shares: Iterable[Iterable[Iterable[Loaded[str]]]]) -> list[Loaded[str]]:
    """All samples but the padding, by position."""
    samples = [loaded for share in shares for batch in share for loaded in batch if not loaded.padding]
    return sorted(samples, key=lambda loaded: loaded.position)


def _digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _order(dataset: ShardedDataset, epochs: int) -> str:
    """The digest of the order that the permutations give."""
    keys = dataset.keys("train")
    return _digest(keys[row] for epoch in range(epochs) for row in epoch_order(5, epoch, len(keys)).tolist())


@pytest.mark.parametrize(("ranks", "readers"), WORLDS)
@pytest.mark.parametrize("batch", [8, 13])
def test_the_orders_digest_is_the_same_for_any_ranks_and_readers(
    dataset: ShardedDataset, ranks: int, readers: int, batch: int
) -> None:
    n = len(dataset.keys("train"))
    samples = _in_order(_load(dataset, ranks, readers, n, batch))  # n batches are `batch` epochs
    assert [loaded.position for loaded in samples] == list(range(n * batch))
    assert _digest(loaded.key for loaded in samples) == _order(dataset, batch)
    for epoch in range(batch):
        assert sorted(loaded.key for loaded in samples[epoch * n : epoch * n + n]) == dataset.keys("train")


@pytest.mark.parametrize(("ranks", "readers"), WORLDS)
def test_ranks_have_equal_contiguous_shares_and_padding_repeats_the_first_of_the_batch(
    dataset: ShardedDataset, ranks: int, readers: int
) -> None:
    batches = list(zip(*_load(dataset, ranks, readers, 5, batch=8), strict=True))
    for number, shares in enumerate(batches):
        assert {len(share) for share in shares} == {-(-8 // ranks)}
        together = [loaded for share in shares for loaded in share]
        assert [loaded.position for loaded in together[:8]] == list(range(8 * number, 8 * number + 8))
        assert [loaded.padding for loaded in together] == [False] * 8 + [True] * (len(together) - 8)
        assert [(x.position, x.key) for x in together[8:]] == [
            (x.position, x.key) for x in together[: len(together) - 8]
        ]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 3), (2, 7)])
def test_a_position_resumes_at_another_world_size_without_a_key_twice_or_lost(
    dataset: ShardedDataset, before: int, after: int
) -> None:
    loaders = [_loader(dataset, batch=8, rank=rank, ranks=before, readers=1) for rank in range(before)]
    seen = [list(islice(loader, 3)) for loader in loaders]
    assert {loader.position for loader in loaders} == {24}
    n = len(dataset.keys("train"))
    both = _in_order([*seen, *_load(dataset, after, 1, n - 3, 8, position=24)])
    assert [loaded.position for loaded in both] == list(range(n * 8))
    assert _digest(loaded.key for loaded in both) == _order(dataset, 8)


def test_a_state_is_small_and_goes_on_at_another_world_size(dataset: ShardedDataset) -> None:
    loaders = [_loader(dataset, batch=8, rank=rank, ranks=2) for rank in range(2)]
    seen = [list(islice(loader, 3)) for loader in loaders]
    assert loaders[0].state == loaders[1].state == LoaderState(24, 5, "train", dataset.info.content_id)
    text = loaders[0].state.to_json()
    assert len(text) < 1000
    n = len(dataset.keys("train"))
    rest = [
        list(
            islice(
                _loader(
                    dataset, batch=8, rank=rank, ranks=3, readers=1, position=LoaderState.from_json(text)
                ),
                n - 3,
            )
        )
        for rank in range(3)
    ]
    both = _in_order([*seen, *rest])
    assert [loaded.position for loaded in both] == list(range(n * 8))
    assert _digest(loaded.key for loaded in both) == _order(dataset, 8)


@pytest.mark.parametrize(("name", "value"), [("content_id", "f" * 64), ("split", "val"), ("seed", 6)])
def test_a_state_of_other_samples_or_another_order_is_refused_by_name(
    dataset: ShardedDataset, name: str, value: object
) -> None:
    state = replace(_loader(dataset, batch=8).state, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"state is of {name} {value}, the loader of .* expected the same"):
        _loader(dataset, batch=8, position=state)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"position": 3}', '{"position": "x", "seed": 0, "split": "train", "content_id": ""}']
)
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the loader's state"):
        LoaderState.from_json(text)


def test_a_loader_that_starts_at_a_far_position_reads_nothing_before_it(dataset: ShardedDataset) -> None:
    read: list[int] = []
    loader = SampleLoader(
        dataset, "train", lambda _, position: read.append(position), seed=5, batch=4, position=10**12
    )
    next(iter(loader))
    assert read == [10**12 + place for place in range(4)]


@pytest.mark.parametrize(("rank", "ranks", "readers"), [(2, 2, 0), (-1, 1, 0), (0, 0, 0), (0, 1, -1)])
def test_an_impossible_world_is_refused(dataset: ShardedDataset, rank: int, ranks: int, readers: int) -> None:
    with pytest.raises(UsageError, match="expected 0 <= rank < ranks"):
        _loader(dataset, batch=8, rank=rank, ranks=ranks, readers=readers)


@pytest.mark.parametrize(("batch", "position"), [(0, 0), (-1, 0), (8, -1)])
def test_an_impossible_batch_or_position_is_refused(
    dataset: ShardedDataset, batch: int, position: int
) -> None:
    with pytest.raises(UsageError, match="expected at least one sample, and no negative position"):
        _loader(dataset, batch=batch, position=position)


def test_a_split_without_samples_is_refused(dataset: ShardedDataset) -> None:
    empty = ShardedDataset(dataset.root, dataset.info, [], {})
    with pytest.raises(UsageError, match="has no train samples"):
        _loader(empty, batch=1)


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_pictures_come_as_they_are_read_one_by_one(dataset: ShardedDataset, readers: int) -> None:
    def read(key: str, position: int) -> tuple[np.ndarray, np.ndarray]:
        return dataset.lq(key, position % 2), dataset.hq_low(key, position % 2)

    for batch in islice(SampleLoader(dataset, "train", read, seed=0, batch=5, readers=readers), 5):
        for loaded in batch:
            lq, target = loaded.value
            np.testing.assert_array_equal(lq, dataset.lq(loaded.key, loaded.position % 2))
            np.testing.assert_array_equal(target, dataset.hq_low(loaded.key, loaded.position % 2))


def _reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("diffbfr-loader")]


def test_readers_work_at_once_ahead_of_who_waits_and_end_with_the_iteration(dataset: ShardedDataset) -> None:
    meeting, read = threading.Barrier(3, timeout=20), threading.Event()

    def read_together(key: str, position: int) -> str:
        if position < 3:
            meeting.wait()  # passes only if three read at the same time
        if position == 11:
            read.set()
        return key

    batches = iter(SampleLoader(dataset, "train", read_together, seed=0, batch=4, readers=3))
    next(batches)
    assert read.wait(20)  # two batches further, although nobody asked
    batches.close()
    deadline = time.monotonic() + 20
    while _reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _reading_threads() == []


@pytest.mark.parametrize("readers", [0, 2])
def test_a_damaged_sample_is_an_error_at_its_batch(dataset: ShardedDataset, readers: int) -> None:
    def read(key: str, position: int) -> str:
        if position == 9:
            raise ShardDamagedError(f"{key} is damaged")
        return key

    loader = SampleLoader(dataset, "train", read, seed=0, batch=4, readers=readers)
    seen = []
    with pytest.raises(ShardDamagedError):
        seen.extend(loaded.position for batch in loader for loaded in batch)
    assert seen == list(range(8))
    assert loader.position == 8


_PROGRAM = """
import sys
from diffbfr.shards import SampleLoader
from pipelines.dataset.manifest import open_dataset
dataset = open_dataset(sys.argv[1])
for batch in SampleLoader(dataset, "train", lambda key, position: dataset.hq(key, 0), seed=0, batch=4, readers=3):
    print(batch[0].position, flush=True)
"""


def test_a_killed_loader_leaves_no_shared_memory_and_no_process(root: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    loader = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(root)], stdout=subprocess.PIPE, cwd=ROOT)
    assert loader.stdout is not None
    for _ in range(20):
        assert loader.stdout.readline()
    assert Path(f"/proc/{loader.pid}/task/{loader.pid}/children").read_text() == ""
    loader.send_signal(signal.SIGKILL)
    loader.communicate()
    mine = [
        path
        for path in set(Path("/dev/shm").iterdir()) - before
        if str(loader.pid) in path.name or "torch" in path.name
    ]
    assert mine == []
