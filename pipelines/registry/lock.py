"""A lock with a lease on each registered model, wherever the registry is.

MLflow has no compare-and-swap that leaves nothing behind. The lock is therefore Lamport's bakery algorithm
(CACM 17(8), 1974) over tags of the registered model itself. It needs only that a read sees every write that
ended before it, which holds for SQLite, for PostgreSQL and for a server in front of either. A contender
announces itself with one tag, takes a number above all numbers it then reads, and has the lock once no other
contender has a lower number. A release deletes both tags, so an unlocked model shows no trace.

Every contender renews its lease on a thread. A lease that another contender saw unchanged for 60 s, on its
own clock, is treated as abandoned and deleted; clocks of two machines are never compared. A process that was
suspended for longer detects the loss in `LockHandle.check`, which every change calls before it writes.
"""

import fcntl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import uuid4

from diffbfr.errors import DiffBFRError
from pipelines.tracking.connection import Registry, database_file

LOCK_TAG: Final = "diffbfr.lock."
"""Prefix of the tag that announces a contender's token. It is written once, so a contender that was given up
does not come back by a late renewal.
"""
LEASE_TAG: Final = "diffbfr.lease."
"""Prefix of the tag with a contender's number and a value that each renewal replaces."""
_STALE_S: Final = 60.0
_RENEW_S: Final = 10.0
_TIMEOUT_S: Final = 120.0
_HOST_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1
_MAX_POLL_S: Final = 2.0


class _Ticket(NamedTuple):
    """A contender's place in the queue; `number` is 0 until it has chosen one."""

    number: int
    token: str
    renewal: str


@dataclass(frozen=True)
class LockHandle:
    """The right to change a registered model, for as long as its lease is renewed."""

    registry: Registry
    name: str
    token: str
    number: int

    def check(self) -> None:
        """Renew the lease; DiffBFRError if another process gave this one up and deleted it."""
        # The renewal comes first: a ticket that is there after it was there when the lease was renewed.
        self._write_lease()
        self.tickets_ahead()

    def tickets_ahead(self) -> list[_Ticket]:
        """Contenders that come before this one, or may: some have not chosen a number yet."""
        tickets = _read_tickets(self.registry, self.name)
        if all(ticket.token != self.token for ticket in tickets):
            raise DiffBFRError(
                f"the lock on {self.name} was lost: its lease was not renewed for {_STALE_S:.0f} s; expected "
                f"a renewal every {_RENEW_S:.0f} s; run the same command again"
            )
        return [ticket for ticket in tickets if ticket[:2] < (self.number, self.token)]

    def _write_lease(self) -> None:
        value = f"{self.number} {uuid4().hex}"
        self.registry.client.set_registered_model_tag(self.name, f"{LEASE_TAG}{self.token}", value)


@contextmanager
def model_lock(registry: Registry, name: str) -> Iterator[LockHandle]:
    """Hold the lock of a registered model, which must exist.

    DiffBFRError if a contender holds it for more than 120 s.
    """
    with _host_lock(registry):
        token = uuid4().hex
        try:
            # The announcement must precede the reading: of two contenders, one sees the other.
            registry.client.set_registered_model_tag(name, f"{LOCK_TAG}{token}", "1")
            highest = max((ticket.number for ticket in _read_tickets(registry, name)), default=0)
            lock = LockHandle(registry, name, token, highest + 1)
            lock._write_lease()
            with _renewed(lock):
                _wait_until_first(lock)
                yield lock
        finally:
            _delete_ticket(registry, name, token)


@contextmanager
def _host_lock(registry: Registry) -> Iterator[None]:
    """Let one process of this host at a time poll a SQLite database, by a lock on a file beside it.

    It only saves time: fifty processes that poll and renew block each other for longer than MLflow waits. A
    process that has waited for 60 s goes on without it, because the holder may be suspended.
    """
    # Connect first, so that no other process waits while this one imports MLflow.
    _ = registry.client
    database = database_file(registry)
    if database is None:
        yield
        return
    deadline = time.monotonic() + _HOST_TIMEOUT_S
    with database.with_name(f"{database.name}.models.lock").open("a") as file:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            # Closing alone would not unlock it where the process was forked meanwhile.
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _renewed(lock: LockHandle) -> Iterator[None]:
    """Renew the lease on a thread. It exists already: MLflow refuses two first writes at once."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            # The server may be away for a while; the holder calls `check` itself before it writes.
            with suppress(Exception):
                lock.check()

    thread = threading.Thread(target=renew, name=f"lease on {lock.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_until_first(lock: LockHandle) -> None:
    """Return once no contender is ahead; delete those whose lease ran out, all of them at once."""
    seen_since: dict[_Ticket, float] = {}
    shortest, deadline = sys.maxsize, 0.0
    while ahead := lock.tickets_ahead():
        now = time.monotonic()
        # A queue that moves is waited for, however long it is.
        if len(ahead) < shortest:
            shortest, deadline = len(ahead), now + _TIMEOUT_S
        seen_since = {ticket: seen_since.get(ticket, now) for ticket in ahead}
        stale = [ticket for ticket, since in seen_since.items() if now - since > _STALE_S]
        for ticket in stale:
            _delete_ticket(lock.registry, lock.name, ticket.token)
        if now > deadline and not stale:
            raise DiffBFRError(
                f"{lock.name} was locked by one command for {_TIMEOUT_S:.0f} s; expected it to become free; "
                "run the same command again"
            )
        time.sleep(min(_MAX_POLL_S, _POLL_S * len(ahead)))


def _read_tickets(registry: Registry, name: str) -> list[_Ticket]:
    tags = registry.client.get_registered_model(name).tags
    tickets = []
    for token in [key.removeprefix(LOCK_TAG) for key in tags if key.startswith(LOCK_TAG)]:
        number, _, renewal = tags.get(f"{LEASE_TAG}{token}", "0 ").partition(" ")
        tickets.append(_Ticket(int(number), token, renewal))
    return tickets


def _delete_ticket(registry: Registry, name: str, token: str) -> None:
    """Delete the lease, then the announcement: what a crash leaves in between still counts as a contender.

    An error of the server is ignored: the lease runs out, and another contender deletes the ticket.
    """
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        for prefix in (LEASE_TAG, LOCK_TAG):
            registry.client.delete_registered_model_tag(name, f"{prefix}{token}")
