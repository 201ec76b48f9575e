"""Processor time and memory of a process and of what it started are those that it spent."""

import os
import subprocess
import sys
import time

from tests.benchmarks.processes import peak_mb, tree, tree_seconds

_PROGRAM = (
    "import time\nheld = bytearray(200_000_000)\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\n"
    "input()"
)


def test_a_child_counts_while_it_lives_and_after_it_was_waited_for() -> None:
    before = tree_seconds(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in tree(os.getpid())
    assert 0.5 < tree_seconds(child.pid) < 2
    assert tree_seconds(os.getpid()) - before > 0.5
    assert 200 < peak_mb(os.getpid())[child.pid] < 300
    child.communicate(b"\n")
    assert child.pid not in tree(os.getpid())
    assert tree_seconds(os.getpid()) - before > 0.5


def test_waiting_costs_nothing() -> None:
    before = tree_seconds(os.getpid())
    time.sleep(0.2)
    assert tree_seconds(os.getpid()) - before < 0.15
