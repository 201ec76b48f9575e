"""Which names of this machine a browser may ask for.

A page of somebody else cannot read answers of another origin, unless it has its own name point to this
machine (DNS rebinding). Then the browser still sends that name, so a request for an unknown one is refused. A
bare address cannot be pointed elsewhere.
"""

import ipaddress
import socket
from dataclasses import dataclass

from diffbfr.errors import UsageError

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True)
class AllowedHosts:
    """The names in a `Host` header that are this server's, in lower case; `any_address`: any bare address."""

    names: frozenset[str]
    any_address: bool = False

    def allows(self, header: str) -> bool:
        """Whether a `Host` header, with or without a port, is this server's."""
        name = host_name(header)
        return name in self.names or (self.any_address and _address(name) is not None)


def allowed_hosts(host: str) -> AllowedHosts:
    """The hosts of a server that listens at `host`."""
    given = host.lower().strip("[]")
    if is_loopback(host):
        return AllowedHosts(_LOOPBACK | {given})
    names = {given, socket.gethostname().lower(), socket.getfqdn().lower()}
    return AllowedHosts(_LOOPBACK | names, any_address=True)


def host_name(header: str) -> str:
    """The name in a `Host` header without its port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    name, _, port = header.rpartition(":")
    return name if name and port.isdigit() else header


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`; UsageError if it is no host of it."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"--host {host} is no address of this machine ({error.strerror}); expected 127.0.0.1 or another; "
            "correct it, or leave it out"
        ) from error
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
