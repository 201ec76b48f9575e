"""Where the registry is, and a quiet client for it: SQLite beside the artifacts by default, any MLflow
server by its URI.
"""

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
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its 7 make one call to a dead server last four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Registry:
    """An MLflow tracking and model registry: `artifacts` is where a new experiment keeps files, None
    leaves it to the server.
    """

    uri: str
    artifacts: str | None
    experiment: str = "diffbfr"

    @cached_property
    def client(self) -> "MlflowClient":
        """The connected client; on the first use ever it also makes the database and the experiment."""
        _connect_check(self.uri)
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _uncollected():
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
            database = database_file(self)
            if database is not None and not database.exists():
                _make_database(database)
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        if client.get_experiment_by_name(self.experiment) is None:
            with _unless_there():
                client.create_experiment(self.experiment, artifact_location=self.artifacts)
        return client

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's own name for the experiment; a deleted experiment is refused."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise UsageError(
                f"experiment {self.experiment!r} in {self.uri} is deleted; expected an active one; "
                "restore it with `mlflow experiments restore`"
            )
        return str(experiment.experiment_id)


def open_registry(root: str, uri: str | None = None, experiment: str = "diffbfr") -> Registry:
    """Say which registry belongs to a root: `uri` if given, else `ROOT/mlflow.db` and `ROOT/mlartifacts`;
    connects to nothing yet.
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
    """The file of an embedded registry; None where a server is asked."""
    return Path(registry.uri.removeprefix(_SQLITE)) if registry.uri.startswith(_SQLITE) else None


def ensure_model(registry: Registry, name: str) -> None:
    """Make a registered model, unless it is there."""
    with _unless_there():
        registry.client.create_registered_model(name)


@contextmanager
def _unless_there() -> Iterator[None]:
    """Let another have made it first."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without looking for garbage: all that MLflow makes stays, and to go through it again and
    again is a quarter of the time.
    """
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _connect_check(uri: str) -> None:
    """One quick look whether a server answers at all, whatever it answers."""
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
    """Make the tables, once: processes that meet on a fresh SQLite file would each make them, and all but one
    die.

    They are made under another name, for MLflow cannot go on from half of them, which a kill in these seconds
    would leave.
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
