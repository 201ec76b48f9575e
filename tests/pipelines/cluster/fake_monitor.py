"""A monitor in this process, called without Ray."""

from collections.abc import Callable
from typing import Any

from pipelines.cluster.monitor import MonitorClient, RankHeartbeat, TrainingMonitor


class FakeMonitorClient(MonitorClient):
    """Calls a `TrainingMonitor` directly; calls are not answered while `pending`, and fail with `error`."""

    def __init__(self, monitor: TrainingMonitor | None = None) -> None:
        self.monitor = monitor or TrainingMonitor()
        self.heartbeats: list[RankHeartbeat] = []
        self.pending = False
        self.error: Exception | None = None

    def send(self, method: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        if method is TrainingMonitor.record_heartbeat:
            self.heartbeats.append(args[0])
        return [method(self.monitor, *args, **kwargs)]

    def result(self, reference: Any, timeout_s: float | None = None) -> Any:
        if self.pending:
            raise TimeoutError
        if self.error is not None:
            raise self.error
        (found,) = reference
        return found

    def stop(self) -> None:
        pass
