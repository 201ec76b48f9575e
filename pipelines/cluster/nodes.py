"""Runs a function once on every node that takes work, for checks of the machines themselves."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from diffbfr.errors import DiffBFRError
from pipelines.cluster.failures import unwrap

Task = TypeVar("Task")
Report = TypeVar("Report")

TIMEOUT_S = 300.0
"""How long a node may take to start a worker, which on a busy machine is minutes, and to run the function."""
_POLL_S = 0.5


@dataclass(frozen=True)
class NodeReport(Generic[Report]):
    """What a node answered, or why it did not; when it was asked and when it answered (s since 1970)."""

    node: str
    report: Report | None
    error: BaseException | None
    asked: float
    answered: float


def run_here(function: Callable[[Task], Report], task: Task) -> list[NodeReport[Report]]:
    """Run the function in this process, which is the only place of work then."""
    asked = time.time()
    try:
        report = function(task)
    except Exception as error:
        return [NodeReport("worker", None, error, asked, time.time())]
    return [NodeReport("worker", report, None, asked, time.time())]


def run_on_nodes(
    function: Callable[[Task], Report],
    task: Task,
    check: Callable[[], None],
    timeout_s: float = TIMEOUT_S,
) -> list[NodeReport[Report]]:
    """Run the function on every node with CPUs, also where all of them are busy; a report each, by name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # an error in an argument would be none of the node
    run: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = time.time()
    waiting: dict[Any, str] = {}
    for name, node_id in _working_nodes().items():
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        waiting[run.options(scheduling_strategy=strategy).remote(task)] = name
    reports: list[NodeReport[Report]] = []
    deadline = time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        check()
        for ended in ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)[0]:
            reports.append(_collect(waiting.pop(ended), ended, asked))
    for reference, name in waiting.items():
        ray.cancel(reference, force=True)
        error = DiffBFRError(
            f"no answer within {timeout_s:.0f} s; expected one; see whether the node is overloaded or cut off"
        )
        reports.append(NodeReport(name, None, error, asked, time.time()))
    return sorted(reports, key=lambda report: report.node)


def _working_nodes() -> dict[str, str]:
    """The node id of each living node with CPUs, by address, or by address and id where several share one."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]  # type: ignore[no-untyped-call]
    addresses = [str(node["NodeManagerAddress"]) for node in alive]
    return {
        address if addresses.count(address) == 1 else f"{address} {node['NodeID'][:6]}": node["NodeID"]
        for address, node in zip(addresses, alive, strict=True)
    }


def _collect(name: str, reference: Any, asked: float) -> NodeReport[Any]:
    import ray

    try:
        report = ray.get(reference)
    except ray.exceptions.RayError as error:
        return NodeReport(name, None, unwrap(error), asked, time.time())
    return NodeReport(name, report, None, asked, time.time())
