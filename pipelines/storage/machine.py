"""Memory of this machine or container, and the load of its cores and memory."""

import os
import time
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Memory limits of a container, in cgroup versions 2 and 1."""


def memory_bytes() -> int:
    """Return the memory of this machine, or the limit of this container if that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [path.read_text().strip() for path in _LIMIT_FILES if path.is_file()]
    return min([total, *(int(text) for text in texts if text.isdecimal())])


def read_system() -> tuple[int, dict[str, float]]:
    """Return the time (ms since 1970) and percentages: load per core over the last minute, memory in use.

    Memory is left out where there is no `/proc/meminfo`.
    """
    values = {"cpu_load_percentage": 100 * os.getloadavg()[0] / (os.cpu_count() or 1)}
    if _MEMORY.exists():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in _MEMORY.read_text().splitlines()}
        values["memory_used_percentage"] = 100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"])
    return int(time.time() * 1000), values
