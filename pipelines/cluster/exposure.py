"""What the processes of a Ray of our own let others reach: the addresses on which they listen."""

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.cluster import orphans

_LISTENING = "0A"
_TABLES = ("tcp", "tcp6")


def describe_own() -> tuple[bool, str]:
    """Whether a Ray of our own is closed to others, in words."""
    addresses = open_addresses()
    if addresses:
        return False, f"{', '.join(addresses)}: open to other machines; expected this machine only"
    return True, "a Ray of our own: listens on this machine only, a token for each run, files of mode 0700"


def describe_joined(address: str) -> tuple[bool, str]:
    """Whether the cluster that is joined asks for a token which nobody else can read, in words."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return True, (
            f"cluster {address}: whoever reaches its ports can run code, unless it asks for a token; set "
            "RAY_AUTH_MODE=token in every process of it"
        )
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    with contextlib.suppress(OSError):
        if not os.environ.get("RAY_AUTH_TOKEN") and file.stat().st_mode & 0o077:
            return False, f"{file} can be read by others; expected mode 0600; run `chmod 600 {file}`"
    return True, f"cluster {address}: asks for a token"


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
