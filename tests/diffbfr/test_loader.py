"""Every key once an epoch for any ranks and workers, in one order; the state is a position; a killed loader leaves nothing behind."""

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from diffbfr.errors import UsageError
from diffbfr.shards import Loaded, SampleLoader, ShardDamagedError, ShardedDataset, digest_keys, order_digest
from pipelines.manifest import open_dataset
from tests.pipelines.tiny_dataset import CONFIG, build, make_photos

ROOT = Path(__file__).parents[2]
WORLDS = [(1, 0), (2, 1), (4, 2), (7, 0), (3, 1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty faces, 25 of them for training."""
    folder = tmp_path_factory.mktemp("loader")
    build(make_photos(folder / "photos", 30), folder / "data", CONFIG)
    return folder / "data"


@pytest.fixture
def dataset(root: Path) -> ShardedDataset:
    return open_dataset(root)


def _load(dataset: ShardedDataset, ranks: int, workers: int, state: dict[str, int | str] | None = None) -> list[list[Loaded[str]]]:
    """The rest of an epoch of every rank."""
    return [
        list(SampleLoader(dataset, "train", lambda key, _: key, seed=5, rank=rank, ranks=ranks, workers=workers, state=state))
        for rank in range(ranks)
    ]


def _in_order(shares: list[list[Loaded[str]]]) -> list[Loaded[str]]:
    return sorted((item for share in shares for item in share if not item.padding), key=lambda item: item.position)


@pytest.mark.parametrize(("ranks", "workers"), WORLDS)
def test_the_orders_digest_is_the_same_for_any_ranks_and_workers(dataset: ShardedDataset, ranks: int, workers: int) -> None:
    keys = dataset.keys("train")
    assert len(keys) == 25
    for epoch in (0, 3):
        state = {"seed": 5, "split": "train", "content_id": dataset.info.content_id, "position": epoch * len(keys)}
        shares = _load(dataset, ranks, workers, state)
        items = _in_order(shares)
        assert [item.position for item in items] == list(range(epoch * 25, epoch * 25 + 25))
        assert sorted(item.key for item in items) == keys
        assert digest_keys(item.key for item in items) == order_digest(dataset, "train", 5, epoch)
        assert {len(share) for share in shares} == {-(-25 // ranks)}
        padding = sorted((item for share in shares for item in share if item.padding), key=lambda item: item.position)
        assert [item.key for item in padding] == [item.key for item in items[: len(padding)]]
        assert len(padding) == -25 % ranks


def test_epochs_and_seeds_have_orders_of_their_own(dataset: ShardedDataset) -> None:
    assert len({order_digest(dataset, "train", seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 3), (2, 7)])
def test_a_state_resumes_at_another_world_size_without_a_key_twice_or_lost(dataset: ShardedDataset, before: int, after: int) -> None:
    loaders = [SampleLoader(dataset, "train", lambda key, _: key, seed=5, rank=rank, ranks=before, workers=1) for rank in range(before)]
    seen = [item for loader in loaders for item in islice(loader, 3)]
    states = [loader.state for loader in loaders]
    assert all(state == states[0] for state in states)
    assert states[0]["position"] == 3 * before
    rest = _in_order(_load(dataset, after, 1, json.loads(json.dumps(states[0]))))
    both = sorted(seen, key=lambda item: item.position) + rest
    assert [item.position for item in both] == list(range(25))
    assert digest_keys(item.key for item in both) == order_digest(dataset, "train", 5, 0)


def test_the_state_is_small_and_an_epoch_ends_where_the_next_begins(dataset: ShardedDataset) -> None:
    loader = SampleLoader(dataset, "train", lambda key, _: key, seed=5, ranks=4, rank=2)
    for epoch in range(3):
        assert (loader.epoch, loader.state["position"]) == (epoch, epoch * 25)
        list(loader)
    assert len(json.dumps(loader.state)) < 1000


def test_a_state_of_another_order_is_refused(dataset: ShardedDataset) -> None:
    state = SampleLoader(dataset, "train", lambda key, _: key, seed=5).state
    for wrong in ({"seed": 6}, {"split": "val"}, {"content_id": "f" * 64}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            SampleLoader(dataset, "train", lambda key, _: key, seed=5, state=state | wrong)


@pytest.mark.parametrize(("rank", "ranks", "workers"), [(2, 2, 0), (-1, 1, 0), (0, 0, 0), (0, 1, -1)])
def test_an_impossible_world_is_refused(dataset: ShardedDataset, rank: int, ranks: int, workers: int) -> None:
    with pytest.raises(UsageError, match="expected 0 <= rank < ranks"):
        SampleLoader(dataset, "train", lambda key, _: key, rank=rank, ranks=ranks, workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pictures_come_as_they_are_read_one_by_one(dataset: ShardedDataset, workers: int) -> None:
    def read(key: str, position: int) -> tuple[np.ndarray, np.ndarray]:
        return dataset.lq(key, position % 2), dataset.hq_low(key, position % 2)

    for item in SampleLoader(dataset, "train", read, workers=workers):
        lq, target = item.value
        np.testing.assert_array_equal(lq, dataset.lq(item.key, item.position % 2))
        np.testing.assert_array_equal(target, dataset.hq_low(item.key, item.position % 2))


def test_workers_read_ahead_at_once_and_end_with_the_iteration(dataset: ShardedDataset) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def read(key: str, position: int) -> str:
        if position < 3:
            meeting.wait()  # passes only if three read at the same time
        return key

    items = iter(SampleLoader(dataset, "train", read, workers=3))
    next(items)
    items.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("diffbfr-loader") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name.startswith("diffbfr-loader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_an_error_at_its_place(dataset: ShardedDataset, workers: int) -> None:
    def read(key: str, position: int) -> str:
        if position == 9:
            raise ShardDamagedError(f"{key} is damaged")
        return key

    loader = SampleLoader(dataset, "train", read, workers=workers)
    seen = []
    with pytest.raises(ShardDamagedError):
        seen.extend(item.position for item in loader)
    assert loader.state["position"] == 9


_PROGRAM = """
import sys
from diffbfr.shards import SampleLoader
from pipelines.manifest import open_dataset
dataset = open_dataset(sys.argv[1])
while True:
    for item in SampleLoader(dataset, "train", lambda key, position: dataset.hq(key, 0), workers=3):
        print(item.position, flush=True)
"""


def test_a_killed_loader_leaves_no_shared_memory(root: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    loader = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(root)], stdout=subprocess.PIPE, cwd=ROOT)
    assert loader.stdout is not None
    for _ in range(30):
        assert loader.stdout.readline()
    loader.send_signal(signal.SIGKILL)
    loader.communicate()
    mine = [path for path in set(Path("/dev/shm").iterdir()) - before if str(loader.pid) in path.name or "torch" in path.name]
    assert mine == []
