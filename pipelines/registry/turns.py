"""One at a time: who moves the aliases of a registered model holds its turn, wherever the registry is.

The turn is a registered model of its own: every database that MLflow runs on gives a name to one creator only, so that the same
few lines serve SQLite, PostgreSQL and a server.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from uuid import uuid4

from diffbfr.errors import DiffBFRError
from pipelines.registry.connection import Registry

SUFFIX: Final = ".turn"
_STALE_S: Final = 60.0
_PATIENCE_S: Final = 120.0
_POLL_S: Final = 0.1
_TAKEN: Final = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""What MLflow says of a name that another has; the second where that one gave it back while MLflow looked it up."""
_IN_THIS_PROCESS = threading.Lock()


@contextmanager
def turn(registry: Registry, name: str) -> Iterator[None]:
    """Hold the turn of a registered model; one whose holder died is taken over after a minute. DiffBFRError if it never comes."""
    with _IN_THIS_PROCESS, _among_processes(registry, name):
        yield


@contextmanager
def _among_processes(registry: Registry, name: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    place, deadline = f"{name}{SUFFIX}", time.monotonic() + _PATIENCE_S
    while True:
        try:
            registry.client.create_registered_model(place)
            break
        except MlflowException as error:
            if error.error_code not in _TAKEN:
                raise
        if time.monotonic() > deadline:
            raise DiffBFRError(f"{name} has been changed by others for {_PATIENCE_S:.0f} s; expected a turn; run the same command again")
        _clear_stale(registry, place)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        with suppress(MlflowException):  # taken over
            registry.client.delete_registered_model(place)


def _clear_stale(registry: Registry, place: str) -> None:
    """Remove a turn whose holder is gone; of several who try, the renaming lets one through."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        held = registry.client.get_registered_model(place)
        if time.time() - held.creation_timestamp / 1000 > _STALE_S:
            grave = f"{place}-{uuid4().hex}"
            registry.client.rename_registered_model(place, grave)
            registry.client.delete_registered_model(grave)
