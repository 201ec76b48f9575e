"""One at a time: who moves the aliases of a registered model holds its turn, wherever the registry is.

A turn is a ticket: a version of the registered model `NAME.turn`. Every database that MLflow runs on numbers
the versions of a name one after another and gives no number twice, so the same few lines serve SQLite,
PostgreSQL and a server: the lowest ticket has the turn, the others stand behind it in their order, and who
removes a ticket can remove no other's.

Its owner renews a ticket, on a thread, as long as he waits and works. Who stands behind watches it with a
clock of his own, and compares it with nobody's: a ticket that was not renewed for a minute is a dead man's,
and is removed. An owner who only slept finds that out from `Turn.check`, before he changes anything.

Those of one machine queue before they draw (`_queue`), so that one of them at a time asks the database.
"""

import fcntl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TextIO
from uuid import uuid4

from diffbfr.errors import DiffBFRError
from pipelines.tracking.connection import Registry, database_file, ensure_model

SUFFIX: Final = ".turn"
_STALE_S: Final = 60.0
_RENEW_S: Final = 10.0
_PATIENCE_S: Final = 120.0
_QUEUE_S: Final = 60.0
_POLL_S: Final = 0.1
_POLL_AT_MOST_S: Final = 2.0
_PAGE: Final = 1000
_RENEWED: Final = "renewed"
_IN_THIS_PROCESS: Final = threading.Lock()


@dataclass(frozen=True)
class Turn:
    """The right to change a registered model, for as long as its ticket is there."""

    registry: Registry
    name: str
    ticket: str

    def check(self) -> None:
        """Renew the ticket; DiffBFRError if others gave its owner up for dead."""
        from mlflow.exceptions import MlflowException

        try:
            self.registry.client.set_model_version_tag(
                f"{self.name}{SUFFIX}", self.ticket, _RENEWED, uuid4().hex
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise DiffBFRError(
                f"the turn to change {self.name} was lost: nothing was heard of this command for "
                f"{_STALE_S:.0f} s; "
                "expected a word every few; run the same command again"
            ) from error


@contextmanager
def turn(registry: Registry, name: str) -> Iterator[Turn]:
    """Hold the turn of a registered model; dead owners are removed after a minute. DiffBFRError if it does
    not come in three.
    """
    with _queue(registry):
        held = Turn(registry, name, _draw(registry, name))
        with _kept(held):
            _wait(held)
            yield held


@contextmanager
def _queue(registry: Registry) -> Iterator[None]:
    """Stand in line on this machine, by a lock on a file beside SQLite, or among the threads of this process
    where a server is.

    Fifty processes that all draw, look and renew lock each other out of SQLite for longer than MLflow waits.
    The queue is there for speed alone: who stood in it for a minute goes on to the tickets, for the first in
    it may be stopped, and they are what counts.
    """
    _ = registry.client  # connected, so that nobody else waits for that
    database, deadline = database_file(registry), time.monotonic() + _QUEUE_S
    if database is None:
        first = _IN_THIS_PROCESS.acquire(timeout=_QUEUE_S)
        try:
            yield
        finally:
            if first:
                _IN_THIS_PROCESS.release()
        return
    with database.with_name(f"{database.name}.turn").open("w") as file:
        while not _locks(file) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing does not, where a process was forked meanwhile


def _locks(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _draw(registry: Registry, name: str) -> str:
    """Draw a ticket. MLflow gives up where many draw at once: they took each other's number three times, or
    SQLite was locked.

    It is renewed from the first: of two threads that both renew it for the first time, MLflow refuses one.
    """
    from mlflow.exceptions import MlflowException

    place, deadline = f"{name}{SUFFIX}", time.monotonic() + _PATIENCE_S
    while True:
        try:
            renewed = {_RENEWED: uuid4().hex}
            return str(
                registry.client.create_model_version(
                    place, f"turn:/{name}", tags=renewed, await_creation_for=0
                ).version
            )
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                ensure_model(registry, place)
            elif (
                error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
                or time.monotonic() > deadline
            ):
                raise
        time.sleep(_POLL_S)


@contextmanager
def _kept(held: Turn) -> Iterator[None]:
    """Renew a ticket on a thread, and give it back at the end."""
    from mlflow.exceptions import MlflowException

    done = threading.Event()

    def renew() -> None:
        while not done.wait(_RENEW_S):
            with suppress(Exception):  # a server that is away for a while; `check` is who tells
                held.check()

    thread = threading.Thread(target=renew, name=f"turn of {held.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(MlflowException):  # it was given up for dead
            held.registry.client.delete_model_version(f"{held.name}{SUFFIX}", held.ticket)


def _wait(held: Turn) -> None:
    """Return once no lower ticket is left; those that stand still for too long are removed."""
    seen: dict[str, tuple[str, float]] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while ahead := _ahead(held):
        now = time.monotonic()
        seen = {
            it: seen[it] if it in seen and seen[it][0] == renewed else (renewed, now)
            for it, renewed in ahead.items()
        }
        stale = [ticket for ticket, (_, since) in seen.items() if now - since > _STALE_S]
        _remove(held, stale)
        if now > deadline and not stale:
            raise _never_came(held.name)
        time.sleep(min(_POLL_AT_MOST_S, _POLL_S * len(ahead)))
    held.check()


def _ahead(held: Turn) -> Mapping[str, str]:
    """The lower tickets -> what each says of its last renewal, which is only compared with itself."""
    found = held.registry.client.search_model_versions(
        f"name = '{held.name}{SUFFIX}'", _PAGE, ["version_number ASC"]
    )
    return {
        str(it.version): str(it.tags.get(_RENEWED, "")) for it in found if int(it.version) < int(held.ticket)
    }


def _remove(held: Turn, tickets: list[str]) -> None:
    from mlflow.exceptions import MlflowException

    for ticket in tickets:
        with suppress(MlflowException):  # another was quicker
            held.registry.client.delete_model_version(f"{held.name}{SUFFIX}", ticket)


def _never_came(name: str) -> DiffBFRError:
    return DiffBFRError(
        f"{name} has been changed by others for {_PATIENCE_S:.0f} s; expected a turn; run the same command "
        "again"
    )
