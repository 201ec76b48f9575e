"""Cores and memory that this process may use, and how loaded they are.

A scheduler, a container or a systemd unit may allow a process less than its machine has. Limits of cgroups,
in versions 1 and 2, hold for a group and for all below it, so that the least on the way up counts.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_PROCESS = Path("/proc/self")


def usable_cores() -> int:
    """Return how many cores this process may keep busy, at least 1.

    The least of the machine's cores, those of the process's affinity, and the CPU quota of its cgroups. A
    fraction of a core is not counted.
    """
    cores = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders("cpu"):
        cores = min(cores, _cpu_quota(folder))
    return max(1, int(cores))


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or the limit of its cgroups if lower."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            numbers = _read_numbers(folder / name)
            limit = min([limit, *numbers])
    return limit


def read_system() -> tuple[int, dict[str, float]]:
    """Return the time (ms since 1970) and percentages: load per core over the last minute, memory in use.

    Memory is left out where there is no `/proc/meminfo`.
    """
    values = {"cpu_load_percentage": 100 * os.getloadavg()[0] / (os.cpu_count() or 1)}
    if _MEMORY.exists():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in _MEMORY.read_text().splitlines()}
        values["memory_used_percentage"] = 100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"])
    return int(time.time() * 1000), values


def _cpu_quota(folder: Path) -> float:
    """The cores that a cgroup may use; infinity if it has no limit."""
    quota = _read_numbers(folder / "cpu.max")
    if not quota:
        quota = _read_numbers(folder / "cpu.cfs_quota_us") + _read_numbers(folder / "cpu.cfs_period_us")
    return quota[0] / quota[1] if len(quota) == 2 and quota[1] else float("inf")


def _read_numbers(file: Path) -> list[int]:
    """The positive numbers of a file, none if it says `max` or -1 or cannot be read."""
    try:
        words = file.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words if word.isdecimal()]


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit a controller, and of all groups above them."""
    groups: dict[str, str] = {}
    for line in _read_lines(_PROCESS / "cgroup"):
        _, names, path = line.split(":", 2)
        groups |= dict.fromkeys(names.split(","), path)  # version 2 has no names
    for line in _read_lines(_PROCESS / "mountinfo"):
        mount, _, file_system = line.partition(" - ")
        root, point = (_unescape(field) for field in mount.split()[3:5])
        kind, _, options = file_system.partition(" ")
        name = {"cgroup": controller, "cgroup2": ""}.get(kind)
        if name in groups and (not name or name in options.rpartition(" ")[2].split(",")):
            group = Path(groups[name])
            inside = group.relative_to(root) if group.is_relative_to(root) else Path()
            folder = Path(point) / inside
            yield from (folder, *list(folder.parents)[: len(inside.parts)])


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    """A path of mountinfo, where a space is written `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
