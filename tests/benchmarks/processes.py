"""Processor time and memory of a process and of all that it started, as Linux counts them."""

import os
from collections.abc import Iterator
from pathlib import Path


def tree_seconds(root: int) -> float:
    """Processor time (s) of a process and its descendants so far.

    It includes the running ones and those that they have waited for.
    """
    return sum(sum(map(int, _stat(process)[11:15])) for process in tree(root)) / os.sysconf("SC_CLK_TCK")


def peak_mb(root: int) -> dict[int, float]:
    """The most memory (10^6 bytes) that each living process of the tree has held, by its number."""
    peaks = {}
    for process in tree(root):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        peaks[process] = next(
            (int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0
        )
    return peaks


def tree(root: int) -> list[int]:
    """A process and its running descendants."""
    children: dict[int, list[int]] = {}
    for process in _all():
        children.setdefault(int(_stat(process)[1]), []).append(process)
    found = [root]
    for process in found:
        found += children.get(process, [])
    return [process for process in found if len(_stat(process)) > 14]


def _all() -> Iterator[int]:
    yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the name (state, parent, ..., utime, stime, cutime, cstime)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def command_line(process: int) -> str:
    """The command line of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def own_seconds(root: int) -> dict[int, float]:
    """Processor time (s) so far of each living process of the tree, without those that it has waited for."""
    ticks = os.sysconf("SC_CLK_TCK")
    return {process: sum(map(int, _stat(process)[11:13])) / ticks for process in tree(root)}
