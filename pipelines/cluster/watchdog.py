"""Detects a training that hangs: every rank sends heartbeats, and the driver kills the ranks when none comes.

Ray restarts workers that die, but not workers that stop without dying (a stopped process, a deadlock, a
network that drops packets): the others wait for them in a collective until it times out. Here the driver
notices the silence within `hang_s` and a second, logs the stacks of every rank, also of one that was stopped,
and kills them all. Training then goes on from its newest checkpoint, as after any death.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.cluster.monitor import MonitorClient, RankHeartbeat, TrainingMonitor
from pipelines.cluster.protocol import Metrics, RestartStats

START_S = 900.0
"""Limit before the first step: data is opened, a checkpoint fetched, a network compiled."""
END_S = 600.0
"""Limit after the last step: the last checkpoint and the weights are uploaded."""
LONGEST_S = 300.0
"""Upper bound of the limit between steps, unless two usual steps take longer."""
_HEARTBEAT_INTERVAL_S = 1.0
_NUM_RECENT_STEPS = 32
_NUM_USUAL_STEPS = 5.0
_STACKS_TIMEOUT_S = 2.0
_NODE_TIMEOUT_S = 20.0
_GONE = "gone"


class RankReporter:
    """The `TrainingReporter` of a rank: sends metrics and heartbeats to the monitor.

    A rank may be silent for the longest of `hang_s`, five usual steps (at most `LONGEST_S`) and two usual
    steps, where a usual step is the median of the recent ones. Until a second step is done, the time to the
    first one counts as a usual step. The limits before the first step and after the last are `START_S` and
    `END_S`.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        rank: int,
        node: str,
        hang_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.monitor = monitor
        self._rank = rank
        self._node = node
        self._hang_s = hang_s
        self._clock = clock
        self._last_report: Any = None
        self._last_heartbeat: Any = None
        self._step_times_s: deque[float] = deque(maxlen=_NUM_RECENT_STEPS)
        self._step = -1
        self._step_at = clock()
        self._first_step_s = START_S
        self._stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the rank lives
        faulthandler.register(signal.SIGUSR2, self._stacks)
        self._send_heartbeat(START_S)

    def report(self, metrics: Metrics) -> None:
        if self._rank == 0:
            self._last_report = self.monitor.send(TrainingMonitor.report, metrics)

    def heartbeat(self, step: int) -> None:
        """Send a heartbeat, at most once a second, but at once where the limit has become shorter."""
        now = self._clock()
        if step > self._step:
            if self._step >= 0:
                self._step_times_s.append((now - self._step_at) / (step - self._step))
            else:
                self._first_step_s = now - self._step_at
            self._step = step
            self._step_at = now
        if now - self._sent_at >= _HEARTBEAT_INTERVAL_S or self._limit_s < self._sent_limit_s:
            self._send_heartbeat(self._limit_s)

    def finishing(self) -> None:
        self._send_heartbeat(END_S)

    def restart_stats(self) -> RestartStats:
        return self.monitor.call(TrainingMonitor.restart_stats)

    def close(self) -> None:
        """End the watch of this rank."""
        self.monitor.send(TrainingMonitor.mark_finished, self._rank)
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()

    def flush(self) -> None:
        """Wait until the last metrics have arrived."""
        if self._last_report is not None:
            self.monitor.result(self._last_report)

    @property
    def _limit_s(self) -> float:
        usual_s = statistics.median(self._step_times_s or [self._first_step_s])
        return max(self._hang_s, min(_NUM_USUAL_STEPS * usual_s, LONGEST_S), 2 * usual_s)

    def _send_heartbeat(self, limit_s: float) -> None:
        self._check_monitor()
        self._sent_at = self._clock()
        self._sent_limit_s = limit_s
        stacks_path = f"/proc/{os.getpid()}/fd/{self._stacks.fileno()}"
        heartbeat = RankHeartbeat(self._rank, os.getpid(), self._node, self._step, limit_s, stacks_path)
        self._last_heartbeat = self.monitor.send(TrainingMonitor.record_heartbeat, heartbeat)

    def _check_monitor(self) -> None:
        """Raise if the monitor is gone: the driver has ended the training, or died."""
        if self._last_heartbeat is not None:
            with contextlib.suppress(TimeoutError):  # not answered yet
                self.monitor.result(self._last_heartbeat, timeout_s=0)


def kill_hung_ranks(
    hung: Sequence[RankHeartbeat],
    label: str,
    root: str,
    kill: Callable[[Sequence[RankHeartbeat]], Sequence[tuple[str, str]]],
) -> str:
    """Kill ranks that hang; log the stacks of each and write them to a file, whose path is returned.

    `kill(heartbeats)` returns the state and the stacks of each rank and kills it (`kill_ranks`). Returns ""
    where the file cannot be written, and where no rank exists any more: then nothing hangs, as the group was
    ended to be replaced by one of another size.
    """
    states = list(kill(hung))
    if all(state == _GONE for state, _ in states):
        return ""
    text = "\n".join(
        f"rank {beat.rank}, process {beat.pid} on {beat.node}, {beat.step} steps done: "
        f"{state}\n{stacks or '(no answer)'}"
        for beat, (state, stacks) in sorted(zip(hung, states, strict=True), key=lambda pair: pair[0].rank)
    )
    path = storage.join(root, "hangs", f"{label}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.txt")
    try:
        storage.write_atomic(path, text.encode())
        written = f"this is also in {path}"
    except Exception as error:  # the storage may be what the ranks hung on: training goes on without the file
        written = f"it could not be kept in {path} ({error})"
        path = ""
    logging.getLogger(__name__).warning(
        "%s: no rank has given a sign for %.0f s; all are ended, to go on from the newest checkpoint; %s\n%s",
        label,
        max(beat.limit_s for beat in hung),
        written,
        text,
    )
    return path


def kill_ranks(heartbeats: Sequence[RankHeartbeat]) -> list[tuple[str, str]]:
    """Kill ranks; returns the state and the stacks of each.

    All stacks are dumped before the first rank is killed, as the death of one ends the others.
    """
    states = _call_on_nodes(dump_worker_stacks, [(it.node, (it.pid, it.stacks_path)) for it in heartbeats])
    _call_on_nodes(kill_worker, [(it.node, (it.pid,)) for it in heartbeats])
    return [(f"out of reach ({type(it).__name__})", "") if isinstance(it, Exception) else it for it in states]


def _call_on_nodes(function: Callable[..., Any], calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """Call a function on several nodes at once: `calls` are a node and the arguments for it.

    The result of a node that is lost, or that does not answer in time, is a RayError.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0)(function)
    running = []
    for node, arguments in calls:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        running.append(task.options(scheduling_strategy=strategy, max_retries=0).remote(*arguments))
    ray.wait(running, num_returns=len(running), timeout=_NODE_TIMEOUT_S)
    results = []
    for call in running:
        try:
            results.append(ray.get(call, timeout=0))
        except ray.exceptions.RayError as error:
            results.append(error)
    return results


def dump_worker_stacks(pid: int, stacks_path: str) -> tuple[str, str]:
    """On a rank's machine: the state of its process and the stacks of its threads.

    A process that was stopped is continued, since it could not write its stacks otherwise.
    """
    try:
        if not _is_worker(pid):
            return _GONE, ""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return f"{fields['State'].strip()}, in {_kernel_function(pid)}", _read_stacks(pid, stacks_path)
    except (OSError, ValueError):
        return _GONE, ""


def kill_worker(pid: int) -> None:
    """On a rank's machine: kill its process."""
    with contextlib.suppress(OSError):
        if _is_worker(pid):
            os.kill(pid, signal.SIGKILL)


def _is_worker(pid: int) -> bool:
    """Whether a process is a Ray worker; no other is ever signalled."""
    return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _read_stacks(pid: int, stacks_path: str) -> str:
    """The stacks of a process's threads; "" if it writes none within `_STACKS_TIMEOUT_S`.

    They come from faulthandler, which needs no running interpreter.
    """
    stacks = ""
    with contextlib.suppress(OSError):
        file = Path(stacks_path)
        size_before = file.stat().st_size
        os.kill(pid, signal.SIGUSR2)  # first: it is pending when a stopped process continues
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + _STACKS_TIMEOUT_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = file.read_text()[size_before:]
            if now and now == stacks:
                break
            stacks = now
    return stacks


def _kernel_function(pid: int) -> str:
    """The kernel function that a process waits in; "?" where the system does not say."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip() or "?"
    except OSError:
        return "?"
