"""Heartbeats of drivers: which drivers of a root have died before tracking had received everything.

Each driver writes a record under `pending/`, renews it while it runs, and removes it when everything is sent.
A process is identified by host, boot, PID namespace, PID and start time, because a restarted container has
the same host name and PID 1 again. Whether a process of this namespace runs is read from `/proc`; any other
is considered dead when its record is older than ten minutes.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from pipelines import storage

PENDING: Final = "pending"
DRIVER: Final = "diffbfr.driver"
_RENEW_S: Final = 60.0
_STALE_S: Final = 600.0
"""Well above the difference between the clocks of machines that share a root."""


@dataclass(frozen=True)
class DriverRecord:
    """Record of a driver: its file, its identity, step -> artifact id, and last renewal (s since 1970)."""

    path: str
    driver: str
    steps: Mapping[str, str] = field(default_factory=dict)
    renewed: float = 0.0


class DriverHeartbeat:
    """Context manager that renews this driver's record on a thread, and reads those of earlier drivers."""

    def __init__(self, root: str, plan_id: str, steps: Mapping[str, str], renew_s: float = _RENEW_S) -> None:
        self.driver = process_identity()
        self._root = root
        self._steps = dict(steps)
        self._renew_s = renew_s
        self._path = storage.join(root, PENDING, f"{plan_id}.json")
        self.left: list[DriverRecord] = []
        """Records of dead drivers, and that of an earlier run of this plan, which this run continues."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.left = [
            record
            for record in read_driver_records(self._root)
            if record.path == self._path or is_dead(record)
        ]
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def is_dead(self, driver: str) -> bool:
        """Whether the driver of an MLflow run has died; False for one elsewhere that has no record here."""
        if driver == self.driver or driver in {record.driver for record in self.left}:
            return driver != self.driver
        records = {record.driver: record for record in read_driver_records(self._root)}
        return is_dead(records.get(driver, DriverRecord("", driver)))

    def remove(self) -> None:
        """Remove this driver's record and those in `left`: tracking has received everything."""
        for path in {self._path, *(record.path for record in self.left)}:
            storage.remove_tree(path)

    def _run(self) -> None:
        while not self._ending.wait(self._renew_s):
            # The next renewal may succeed, and ten minutes without one do no harm.
            with contextlib.suppress(Exception):
                self._write()

    def _write(self) -> None:
        storage.write_json(self._path, {"driver": self.driver, "steps": self._steps, "renewed": time.time()})


def read_driver_records(root: str) -> list[DriverRecord]:
    """Every record under a root."""
    records = []
    for name in storage.list_dir(storage.join(root, PENDING)):
        path = storage.join(root, PENDING, name)
        # Another process may have sent everything and removed the file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            values: dict[str, Any] = storage.read_json(path)
            driver, steps = values.get("driver", ""), values.get("steps", {})
            records.append(DriverRecord(path, driver, steps, values.get("renewed", 0.0)))
    return records


def has_pending_tracking(root: str) -> bool:
    """Whether an earlier run ended before tracking had received everything, or a run is under way."""
    return bool(read_driver_records(root))


def is_dead(record: DriverRecord) -> bool:
    """Whether the driver of a record has died, as far as this machine can tell."""
    *where, pid, started = record.driver.split(":") if record.driver.count(":") == 4 else ("", "", "", "", "")
    if where == _namespace():
        return _start_time(pid) != started
    return 0 < record.renewed < time.time() - _STALE_S


def process_identity() -> str:
    """`host:boot:pid namespace:pid:start time` of this process."""
    pid = str(os.getpid())
    return ":".join([*_namespace(), pid, _start_time(pid)])


def run_tags(root: str) -> dict[str, str]:
    """Tags of every MLflow run of a root, by which the next driver ends runs that a dead one left RUNNING."""
    return {"diffbfr.root": root, DRIVER: process_identity()}


def _namespace() -> list[str]:
    """Host, boot id and PID namespace; the last two are "" where there is no `/proc`."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        boot = namespace = ""
    return [socket.gethostname().replace(":", "-"), boot, namespace]


def _start_time(pid: str) -> str:
    """Start time of a process of this namespace, in clock ticks after the boot; "" if it does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
