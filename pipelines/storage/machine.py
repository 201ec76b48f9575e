"""What this machine has and is doing: load of its cores, its memory and the use of it."""

import os
import time
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_ALLOWED = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""What a container may use, if it is limited: cgroup 2 and 1."""


def memory_bytes() -> int:
    """Memory that this machine has, or that this container may use of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = [
        int(text) for path in _ALLOWED if path.is_file() and (text := path.read_text().strip()).isdecimal()
    ]
    return min([total, *allowed])


def read_system() -> tuple[int, dict[str, float]]:
    """The time (ms since 1970) and percentages: running processes a core over the last minute, and memory
    in use where Linux tells.
    """
    values = {"cpu_load_percentage": 100 * os.getloadavg()[0] / (os.cpu_count() or 1)}
    if _MEMORY.exists():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in _MEMORY.read_text().splitlines()}
        values["memory_used_percentage"] = 100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"])
    return int(time.time() * 1000), values
