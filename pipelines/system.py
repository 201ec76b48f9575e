"""What this machine is doing: load of its cores and use of its memory."""

import os
import time
from pathlib import Path

_MEMORY = Path("/proc/meminfo")


def read_system() -> tuple[int, dict[str, float]]:
    """The time (ms since 1970) and percentages: running processes a core over the last minute, and memory in use where Linux tells."""
    values = {"cpu_load_percentage": 100 * os.getloadavg()[0] / (os.cpu_count() or 1)}
    if _MEMORY.exists():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in _MEMORY.read_text().splitlines()}
        values["memory_used_percentage"] = 100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"])
    return int(time.time() * 1000), values
