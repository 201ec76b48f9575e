"""Large blocks that are freed are there for the next one: the system hands out no page twice."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from diffbfr.cost.malloc import tune_malloc
if sys.argv[1] == "kept":
    assert tune_malloc()
def work():
    block = np.empty(64 << 20, np.uint8)
    block[::4096] = 1
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt(3) is glibc's")
def test_blocks_above_32_mb_are_mapped_once() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True
            ).stdout
        )

    kept, mapped = faults("kept"), faults("as it comes")
    assert kept < 100, f"{kept} pages came from the system in five allocations"
    assert mapped > 100
