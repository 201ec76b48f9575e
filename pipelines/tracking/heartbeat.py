"""Which drivers of a root are gone: each leaves a record under `untold/`, renews it while it lives, and
removes it once tracking knows all.

A process is known by its machine's boot, its PID namespace, its number and the time of its start: a restarted
container has the same host name and again the number 1. Whether one of this namespace lives is asked of the
system; of any other only the age of its record tells.
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
"""Machines that share a root agree on the time to a few minutes."""


@dataclass(frozen=True)
class DriverRecord:
    """What a driver left: who it is, its plan's steps by name, and when it last gave a sign (s since
    1970).
    """

    place: str
    driver: str
    steps: Mapping[str, str] = field(default_factory=dict)
    renewed: float = 0.0


class DriverHeartbeat:
    """This driver's record, renewed on a thread, and the records that were there before; a context
    manager.
    """

    def __init__(self, root: str, plan_id: str, steps: Mapping[str, str], renew_s: float = _RENEW_S) -> None:
        self.driver = process_identity()
        self._root, self._steps, self._renew_s = root, dict(steps), renew_s
        self._place = storage.join(root, PENDING, f"{plan_id}.json")
        self.left: list[DriverRecord] = []
        """Marks of drivers that were gone, and that of this plan, which this run goes on with."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.left = [
            record
            for record in read_driver_records(self._root)
            if record.place == self._place or is_dead(record)
        ]
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def is_dead(self, driver: str) -> bool:
        """Whether the driver that a run names has ended; of another machine's that left no record here
        nobody knows.
        """
        if driver == self.driver or driver in {record.driver for record in self.left}:
            return driver != self.driver
        records = {record.driver: record for record in read_driver_records(self._root)}
        return is_dead(records.get(driver, DriverRecord("", driver)))

    def remove(self) -> None:
        """Say that all is told, also what was left."""
        for place in {self._place, *(record.place for record in self.left)}:
            storage.remove_tree(place)

    def _run(self) -> None:
        while not self._ending.wait(self._renew_s):
            with contextlib.suppress(
                Exception
            ):  # the next one may come through, and ten minutes of none are no harm
                self._write()

    def _write(self) -> None:
        storage.write_json(self._place, {"driver": self.driver, "steps": self._steps, "renewed": time.time()})


def read_driver_records(root: str) -> list[DriverRecord]:
    """Every record under a root."""
    records = []
    for name in storage.list_dir(storage.join(root, PENDING)):
        place = storage.join(root, PENDING, name)
        with contextlib.suppress(FileNotFoundError):  # told meanwhile
            values: dict[str, Any] = storage.read_json(place)
            records.append(
                DriverRecord(
                    place, values.get("driver", ""), values.get("steps", {}), values.get("renewed", 0.0)
                )
            )
    return records


def has_pending_tracking(root: str) -> bool:
    """Whether an earlier run ended before tracking had received everything."""
    return bool(read_driver_records(root))


def is_dead(record: DriverRecord) -> bool:
    """Whether the driver of a record has ended, as far as can be known here."""
    *where, pid, started = record.driver.split(":") if record.driver.count(":") == 4 else ("", "", "", "", "")
    if where == _here():
        return _started(pid) != started
    return 0 < record.renewed < time.time() - _STALE_S


def process_identity() -> str:
    """Identity of this process."""
    pid = str(os.getpid())
    return ":".join([*_here(), pid, _started(pid)])


def run_tags(root: str) -> dict[str, str]:
    """What every MLflow run of a root says of itself: by them the next driver ends what a dead one left
    running.
    """
    return {"diffbfr.root": root, DRIVER: process_identity()}


def _here() -> list[str]:
    """Host, boot and PID namespace, the last two where Linux tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        boot = namespace = ""
    return [socket.gethostname().replace(":", "-"), boot, namespace]


def _started(pid: str) -> str:
    """When a process of this namespace started (clock ticks after the boot); "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
