"""Notices at once that the Ray of our own has lost one of the processes that it cannot do without.

Ray itself waits for them for minutes, or asks for more machines meanwhile.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from diffbfr.errors import IncompleteError
from pipelines.cluster import orphans

_VITAL = ("gcs_server", "raylet")


@dataclass(frozen=True)
class RayProcesses:
    """The vital processes of a Ray of our own: their PID by name. Empty where there is no `/proc`."""

    pids: Mapping[str, tuple[int, str]]

    @classmethod
    def find(cls) -> Self:
        """Those that carry this driver's identity."""
        own = orphans.process_identity(os.getpid())
        found = {}
        for pid, _ in orphans.find_processes(lambda driver: driver == own):
            name = _name(pid)
            if name in _VITAL:
                found[name] = pid, orphans.process_identity(pid)
        return cls(found)

    def dead(self) -> str:
        """The name of one that has ended, "" if all are alive."""
        for name, (pid, identity) in self.pids.items():
            if orphans.process_identity(pid) != identity:
                return name
        return ""

    def check(self) -> None:
        """IncompleteError if one has ended."""
        if name := self.dead():
            raise IncompleteError(
                f"the process {name} of Ray has ended; expected it to live as long as the work (it was "
                "killed, perhaps for want of memory); run the same command again"
            )


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
