"""The connection to MLflow: a SQLite file beside the artifacts by default, or any server or database URI."""

import fcntl
import gc
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from diffbfr.errors import UsageError
from pipelines import storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_PROBE_S = 5
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # With MLflow's default of 7, one call to a dead server takes four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Registry:
    """An MLflow tracking and model registry.

    `artifacts` is the URI below which a new experiment keeps files; None leaves it to the server.
    """

    uri: str
    artifacts: str | None
    experiment: str = "diffbfr"

    @cached_property
    def client(self) -> "MlflowClient":
        """The connected client. The first use creates a database and an experiment that do not exist."""
        _check_reachable(self.uri)
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _gc_paused():
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
            database = database_file(self)
            if database is not None and not database.exists():
                _make_database(database)
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        if client.get_experiment_by_name(self.experiment) is None:
            with _ignore_existing():
                client.create_experiment(self.experiment, artifact_location=self.artifacts)
        return client

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; UsageError if the experiment was deleted."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise UsageError(
                f"experiment {self.experiment!r} in {self.uri} is deleted; expected an active one; "
                "restore it with `mlflow experiments restore`"
            )
        return str(experiment.experiment_id)


def open_registry(root: str, uri: str | None = None, experiment: str = "diffbfr") -> Registry:
    """The registry of a root: `uri` if given, else `ROOT/mlflow.db` and `ROOT/mlartifacts`.

    Connects to nothing yet. UsageError if `uri` is neither a server nor a database, or `root` is remote and
    there is none.
    """
    if uri is None:
        if storage.is_remote(root):
            raise UsageError(
                f"root {root} is remote, SQLite needs a local file; expected the URI of an MLflow server; "
                "set tracking.uri"
            )
        uri = f"{_SQLITE}{storage.join(storage.absolute(root), 'mlflow.db')}"
    if uri.startswith(("http://", "https://")):
        return Registry(uri.rstrip("/"), None, experiment)
    if not uri.startswith((_SQLITE, "postgresql", "mysql", "mssql")):
        raise UsageError(
            f"tracking URI {uri!r} is neither http(s):// nor a database; expected one of them; correct "
            "tracking.uri"
        )
    place = storage.join(storage.absolute(root), "mlartifacts")
    return Registry(uri, place if storage.is_remote(place) else Path(place).as_uri(), experiment)


def database_file(registry: Registry) -> Path | None:
    """The file of a SQLite registry; None if the registry is a server or another database."""
    return Path(registry.uri.removeprefix(_SQLITE)) if registry.uri.startswith(_SQLITE) else None


def ensure_model(registry: Registry, name: str) -> None:
    """Create a registered model if it does not exist."""
    with _ignore_existing():
        registry.client.create_registered_model(name)


@contextmanager
def _ignore_existing() -> Iterator[None]:
    """Ignore an MlflowException that says that the object already exists."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause the garbage collector: it takes a quarter of MLflow's import time and finds nothing to free."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_reachable(uri: str) -> None:
    """UsageError if nothing answers at an HTTP URI within 5 s; any HTTP status counts as an answer."""
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=_PROBE_S).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"no MLflow server answers at {uri} ({reason}); expected a running one; start it or correct "
            "tracking.uri"
        ) from error


def _make_database(database: Path) -> None:
    """Create the tables in one process: MLflow fails if several create them in the same SQLite file.

    They are created under another name, because MLflow cannot continue from the half that a kill would leave.
    """
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if database.exists():
            return
        draft = database.with_name(f".{database.name}.draft")
        draft.unlink(missing_ok=True)
        MlflowClient(tracking_uri=f"{_SQLITE}{draft}").search_experiments(max_results=1)
        draft.replace(database)
