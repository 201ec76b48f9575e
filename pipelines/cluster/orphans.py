"""Ends the processes of a Ray that this program started, also after the driver was killed.

Ray leaves processes behind: the agents of a node whose driver was killed, and now and then a worker whose
interpreter does not end. Every process of our Ray inherits an environment variable that names its driver by
PID namespace, PID and start time, so that it is found in `/proc` without any record on disk. Processes of
another Ray do not have the variable, and those of a driver that lives are left alone. A process that another
thread of the driver starts during the seconds of `ray.init` inherits the variable too, and ends with Ray.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DRIVER_VARIABLE = "DIFFBFR_RAY_DRIVER"
_GRACE_S = 1.0
"""For processes that end by themselves after `ray.shutdown`."""
_TERMINATE_S = 2.0
"""Between SIGTERM and SIGKILL."""
_KILL_S = 5.0
"""After SIGKILL the kernel may still have to write out a process's memory."""
_POLL_S = 0.05


@contextlib.contextmanager
def marked_processes() -> Iterator[None]:
    """Let the processes that are started in the context, and their children, carry this driver's identity."""
    os.environ[DRIVER_VARIABLE] = process_identity(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(DRIVER_VARIABLE, None)


def end_own_processes() -> None:
    """End every process that carries this driver's identity, after a second in which it may end by itself."""
    own = process_identity(os.getpid())
    _end_processes(lambda driver: driver == own, grace_s=_GRACE_S)


def end_orphans() -> None:
    """End every process whose driver has ended without doing so itself."""
    _end_processes(is_dead, grace_s=0.0)


def find_processes(is_wanted: Callable[[str], bool]) -> list[tuple[int, str]]:
    """PID and driver of every marked process of this user whose driver is wanted; none without `/proc`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        driver = _driver_of(int(entry.name))
        if driver and is_wanted(driver):
            found.append((int(entry.name), driver))
    return found


def _end_processes(is_wanted: Callable[[str], bool], grace_s: float) -> None:
    """Signal processes until none is left; those that start meanwhile are found too."""
    start = time.monotonic()
    terminated: set[tuple[int, str]] = set()
    while processes := find_processes(is_wanted):
        waited_s = time.monotonic() - start - grace_s
        if waited_s > _TERMINATE_S + _KILL_S:
            pids = ", ".join(str(pid) for pid, _ in processes)
            logging.getLogger(__name__).warning("processes %s of Ray do not end; end them by hand", pids)
            return
        for process in processes:
            if waited_s > _TERMINATE_S:
                _send(signal.SIGKILL, *process)
            elif waited_s >= 0 and process not in terminated:
                terminated.add(process)
                _send(signal.SIGTERM, *process)
        time.sleep(_POLL_S)


def _send(number: signal.Signals, pid: int, driver: str) -> None:
    """Signal a process, unless its PID has passed to another one since it was found."""
    if sys.platform != "linux":
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, or a seccomp profile that refuses the call
        with contextlib.suppress(OSError):
            if _driver_of(pid) == driver:
                os.kill(pid, number)
        return
    try:
        with contextlib.suppress(OSError):
            if _driver_of(pid) == driver:
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _driver_of(pid: int) -> str:
    """The driver whose identity a process carries; "" if it has none, has ended or is not this user's."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{DRIVER_VARIABLE}=".encode()
    return next((it.removeprefix(prefix).decode() for it in variables if it.startswith(prefix)), "")


def process_identity(pid: int) -> str:
    """PID namespace, PID and start time (clock ticks since the boot) of a process; "" if it does not exist.

    The namespace tells the processes of a container from those of its host, where the same PID is another's.
    """
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return "" if state == "Z" else f"{namespace}:{pid}:{started}"


def is_dead(driver: str) -> bool:
    """Whether a driver of this PID namespace has ended; one of another namespace is not known to have."""
    namespace, _, rest = driver.partition(":")
    pid = rest.partition(":")[0]
    own_namespace = process_identity(os.getpid()).partition(":")[0]
    return namespace == own_namespace and pid.isdigit() and process_identity(int(pid)) != driver
