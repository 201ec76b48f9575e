"""What the processes of a Ray of our own let others reach: the addresses on which they listen."""

import contextlib
import ipaddress
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipelines.cluster import orphans

_LISTENING = "0A"
_DASHBOARD_S = 5.0
_TABLES = ("tcp", "tcp6")


def describe_own() -> tuple[bool, str]:
    """Whether a Ray of our own is closed to others, in words."""
    addresses = open_addresses()
    if addresses:
        return False, f"{', '.join(addresses)}: open to other machines; expected this machine only"
    return True, "a Ray of our own: listens on this machine only, a token for each run, files of mode 0700"


def describe_joined(address: str) -> tuple[bool, str]:
    """Whether the cluster that this process has joined asks for a token which nobody else can read, in words.

    A cluster that admitted this process without a token asks for none. One that was shown a token may ignore
    it, so its dashboard is asked without.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False, (
            f"cluster {address} asks for no token: whoever reaches its ports can run code; expected one; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH in every process of it and start it again"
        )
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    with contextlib.suppress(OSError):
        if not os.environ.get("RAY_AUTH_TOKEN") and file.stat().st_mode & 0o077:
            return False, f"{file} can be read by others; expected mode 0600; run `chmod 600 {file}`"
    dashboard = dashboard_address()
    if not dashboard:
        return True, f"cluster {address}: this process shows a token; there is no dashboard to try it without"
    if answers_without_token(dashboard):
        return False, (
            f"the dashboard at {dashboard} takes jobs without a token: whoever reaches it can run code; "
            "expected it to ask for one; set RAY_AUTH_MODE=token where the head is started"
            f"{'' if _is_local(dashboard) else ', or --dashboard-host=127.0.0.1'}"
        )
    return True, f"cluster {address}: asks for a token, and so does its dashboard at {dashboard}"


def dashboard_address() -> str:
    """HOST:PORT of the dashboard of the Ray that this process is connected to, "" without one."""
    import ray

    if not ray.is_initialized():
        return ""
    from ray._private.worker import get_dashboard_url

    return str(get_dashboard_url() or "").removeprefix("http://")  # type: ignore[no-untyped-call]


def answers_without_token(dashboard: str) -> bool:
    """Whether a dashboard lists jobs for somebody who shows no token; who may list them may submit one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{dashboard}/api/jobs/", timeout=_DASHBOARD_S) as answer:
            return bool(answer.status < 300)
    except OSError:  # refused, or out of reach from here
        return False


def _is_local(place: str) -> bool:
    host = place.rpartition(":")[0].strip("[]")
    try:
        return _is_loopback(host)
    except ValueError:
        return host == "localhost"


def open_addresses() -> list[str]:
    """Every `NAME ADDRESS:PORT` on which a process of this driver's Ray listens for other machines."""
    own = orphans.process_identity(os.getpid())
    pids = [pid for pid, _ in orphans.find_processes(lambda driver: driver == own)]
    listening = dict(_listening())
    found = set()
    for pid in (*pids, os.getpid()):
        for inode in _sockets(pid) & listening.keys():
            address, port = listening[inode]
            if not _is_loopback(address):
                found.add(f"{_name(pid)} {address}:{port}")
    return sorted(found)


def _listening() -> Iterator[tuple[str, tuple[str, int]]]:
    """The inode, address and port of each TCP socket of this machine that listens."""
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    address, port = fields[1].split(":")
                    yield fields[9], (_parse_address(address), int(port, 16))


def _parse_address(digits: str) -> str:
    """An address as the kernel writes it: words of four bytes, each in the byte order of the machine."""
    words = (bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8))
    order = -1 if sys.byteorder == "little" else 1
    return str(ipaddress.ip_address(b"".join(word[::order] for word in words)))


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process holds."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return str(pid)
