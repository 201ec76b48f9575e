"""SIGTERM and SIGHUP end a command like Ctrl-C: one line, 128 and the number of the signal, in time."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

_COMMAND = """
import os, signal, sys, time
from diffbfr.errors import IncompleteError
from pipelines.cli import app
from pipelines.cli import signals as ending

def work():
    try:
        print("working", flush=True)
        {work}
    finally:
        {last}

ending.GRACE_S = 1.0
app.app = work
app.main()
"""


def _handle_signals_again() -> None:
    """A shell that starts tests in the background has some of them ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(
    last: str = "print('drained', flush=True)",
    preexec_fn: Callable[[], object] = _handle_signals_again,
    work: str = "time.sleep(60)",
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND.format(last=last, work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize(
    ("number", "exit_code", "line"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_drains_and_is_one_line(number: signal.Signals, exit_code: int, line: str) -> None:
    process = start()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (exit_code, "drained\n")
    assert errors == f"diffbfr: {line}; the same command goes on from here\n"


def test_what_fails_because_of_the_signal_is_no_second_line() -> None:
    process = start("raise IncompleteError('3 of 4 tasks failed')")
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors == "diffbfr: ended by SIGTERM; the same command goes on from here\n"


def test_an_end_that_takes_too_long_is_cut_and_a_second_signal_changes_nothing() -> None:
    process = start("time.sleep(60)")
    started = time.monotonic()
    process.terminate()
    time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - started < 10
    assert errors == "diffbfr: ended by SIGTERM; the same command goes on from here\n"


def test_an_ignored_hangup_stays_ignored() -> None:
    """As `nohup` starts a command."""
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_a_signal_to_a_forked_process_ends_that_process_alone() -> None:
    process = start(
        "print('drained', flush=True)",
        work="child = os.fork() or time.sleep(60)\n        time.sleep(1)\n        os.kill(child, signal.SIGTERM)\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n        time.sleep(3)",
    )
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "-15\ndrained\n")
    assert errors == ""
