"""The connection to MLflow: a SQLite file beside the artifacts by default, or any server or database URI."""

import fcntl
import functools
import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from diffbfr.errors import UsageError
from diffbfr.text import shown
from pipelines import storage
from pipelines.tracking.access import check_database, check_server, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_QUOTED_SQLITE = "sqlite+pysqlite:///"
"""MLflow would make a folder of the quoted name beside a file that is named by `sqlite:///`."""
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
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _gc_paused(), explained(self.uri):
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
            database = database_file(self)
            if self.uri.startswith("http"):
                check_server(self.uri, self.experiment)
            elif database is None or database.exists():
                check_database(self.uri)
            else:
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
        uri = _sqlite_uri(storage.join(storage.absolute(root), "mlflow.db"))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            _report_unused(name, uri, "tracking.uri")
    _report_unused("MLFLOW_EXPERIMENT_NAME", experiment, "tracking.experiment")
    if uri.startswith(("http://", "https://")):
        return Registry(uri.rstrip("/"), None, experiment)
    if not uri.startswith((_SQLITE, _QUOTED_SQLITE, "postgresql", "mysql", "mssql")):
        raise UsageError(
            f"tracking URI {uri!r} is neither http(s):// nor a database; expected one of them; correct "
            "tracking.uri"
        )
    place = storage.join(storage.absolute(root), "mlartifacts")
    return Registry(uri, place if storage.is_remote(place) else Path(place).as_uri(), experiment)


def database_file(registry: Registry) -> Path | None:
    """The file of a SQLite registry; None if the registry is a server or another database."""
    for prefix in (_SQLITE, _QUOTED_SQLITE):
        if registry.uri.startswith(prefix):
            return Path(unquote(registry.uri.removeprefix(prefix).partition("?")[0]))
    return None


def _sqlite_uri(file: Path | str) -> str:
    """The URI of a file, quoted where it has to be: `?` would begin a query, and `%20` is read as a space."""
    path = str(file)
    if "?" not in path and "%" not in path:
        return f"{_SQLITE}{path}"
    return f"{_QUOTED_SQLITE}{path.replace('%', '%25').replace('?', '%3F')}"


@functools.cache
def _report_unused(variable: str, used: str, setting: str) -> None:
    """Say once that a variable of MLflow names another place than the one that is used."""
    value = os.environ.get(variable, "").rstrip("/")
    if value and value != used:
        logging.getLogger(__name__).warning(
            "%s=%s is not used, tracking goes to %s; name it with --set %s=...%s to use it",
            variable,
            shown(value),
            shown(used),
            setting,
            ", or --tracking of `diffbfr models`," if setting == "tracking.uri" else "",
        )


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
        MlflowClient(tracking_uri=_sqlite_uri(draft)).search_experiments(max_results=1)
        draft.replace(database)
