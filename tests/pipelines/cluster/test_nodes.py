"""A function runs once on every node; a node that fails is a report, and a token that is missing one line."""

import time

import pytest
import ray

from diffbfr.errors import UsageError
from pipelines.cluster import Cluster, ClusterConfig
from pipelines.cluster.nodes import run_on_nodes


def double(number: int) -> int:
    return 2 * number


def refuse(number: int) -> int:
    raise UsageError(f"{number} is refused; expected none; name another")


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_without_ray_this_process_is_the_only_place(serial: Cluster) -> None:
    (report,) = serial.on_each_node(double, 21)
    assert (report.node, report.report, report.error) == ("worker", 42, None)
    assert report.asked <= report.answered
    (report,) = serial.on_each_node(refuse, 1)
    assert report.report is None
    assert isinstance(report.error, UsageError)


@pytest.mark.cluster
@pytest.mark.slow
def test_each_node_answers_fails_or_is_late(cluster: Cluster) -> None:
    (report,) = cluster.on_each_node(double, 21)
    assert (report.node, report.report, report.error) == ("127.0.0.1", 42, None)
    (report,) = cluster.on_each_node(refuse, 1)
    assert isinstance(report.error, UsageError)
    (report,) = run_on_nodes(wait, 60.0, lambda: None, timeout_s=1.0)
    assert "no answer within 1 s" in str(report.error)


def test_a_cluster_that_wants_another_token_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_token(**options: object) -> None:
        raise ray.exceptions.AuthenticationError("InvalidAuthToken: missing or incorrect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse_token)
    with (
        pytest.raises(UsageError, match="refuses this process .* set RAY_AUTH_MODE=token"),  # noqa: RUF043
        Cluster(ClusterConfig(address="ray-head")) as cluster,
    ):
        cluster.on_each_node(double, 1)


def test_a_token_that_only_a_cause_of_the_failure_speaks_of_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ray 2.60 fails without a token and with a wrong one."""

    def fail(**options: object) -> None:
        try:
            raise RuntimeError(
                "Failed to connect to GCS. Last connection error: Traceback (most recent call last):\n"
                "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing "
                "or incorrect. Ensure that the token"
            )
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.2:6379") from error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    expected = r"refuses this process \(InvalidAuthToken: .* incorrect\); .* set RAY_AUTH_MODE=token"
    with pytest.raises(UsageError, match=expected), Cluster(ClusterConfig(address="auto")) as cluster:
        cluster.on_each_node(double, 1)
