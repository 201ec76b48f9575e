"""The largest resident set of this process alone.

`ru_maxrss` is no measure of it: a new program starts with the figure of the process that started it, so that
a child of a large pytest process seems large from its first line.
"""

from pathlib import Path


def peak_kib() -> int:
    """The largest resident set of this process since its program started, in KiB; Linux only."""
    return next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
