"""For the whole suite: shapes checked in diffbfr, and one Ray shared by every test that wants a real
cluster.
"""

import os
from collections.abc import Iterator

import hypothesis
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 - the hook below looks it up by name
from pipelines.cluster import Cluster, ClusterConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
install_import_hook(["diffbfr"], "tests.typecheck.check")
hypothesis.settings.register_profile("any machine", deadline=None)  # no test asserts a duration
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[Cluster]:
    with Cluster(ClusterConfig(num_workers=2)) as shared:
        shared.map(abs, [0], label="start ray")
        yield shared


@pytest.fixture
def cluster(_shared_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two workers on one Ray for the whole session; tests that use it carry the mark `cluster`.

    The test's own functions travel to the workers by value, for a worker cannot import a test module.
    """
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield _shared_cluster
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def serial() -> Cluster:
    """The twin without Ray."""
    return Cluster(ClusterConfig(num_workers=0))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the ranks of a test have: kernels cut their sums by threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
