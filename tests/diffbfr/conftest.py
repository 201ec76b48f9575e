"""For the tests of the core: one tiny dataset for all that train, and one thread for networks too small to
share.
"""

import sys
from collections.abc import Iterator

import pytest

from diffbfr.shards import ShardedDataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Twenty procedural faces at 32 and 8 px, all of them for training, with a column to condition IRM-2."""
    from tests.diffbfr.tiny import make_dataset

    return make_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch = sys.modules.get("torch")
    if torch is None:  # a test without it need not wait for it
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
