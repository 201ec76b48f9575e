"""Tries whether a registry takes what a run sends at its end: before the run, and for `diffbfr doctor`."""

import contextlib
import importlib.util
import re
import sqlite3
import tempfile
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from diffbfr.errors import DiffBFRError, IncompleteError, UsageError, one_line
from diffbfr.text import without_secrets
from pipelines.tracking.access import describe_schema, explained
from pipelines.tracking.connection import Registry, database_file

_TAG: Final = "diffbfr.doctor"
_BUSY_S: Final = 5.0
_REVISION: Final = re.compile(r"""^(down_)?revision(?:: [^=]+)? = (?:["'](\w+)["']|None)""", re.MULTILINE)


def check_ready(registry: Registry) -> None:
    """UsageError unless the registry will take models; IncompleteError if it is only busy.

    A server or a database is asked in full. A SQLite file is opened without MLflow, whose import alone would
    take seconds; one that does not exist yet passes.
    """
    file = database_file(registry)
    if file is None:
        round_trip(registry)
    elif file.exists():
        _check_sqlite(registry, file)


def round_trip(registry: Registry) -> str:
    """Write a tag of the experiment and of each registered model, and a file, and read them back.

    Nothing else is left behind. DiffBFRError says what failed.
    """
    from mlflow.exceptions import MlflowException

    value = uuid.uuid4().hex
    try:
        with explained(registry.uri):
            registry.client.set_experiment_tag(registry.experiment_id, _TAG, value)
            found = registry.client.get_experiment(registry.experiment_id).tags.get(_TAG)
            models = registry.client.search_registered_models(filter_string="name LIKE 'diffbfr-%'")
            for model in models:
                registry.client.set_registered_model_tag(model.name, _TAG, value)
    except MlflowException as error:
        raise IncompleteError(
            f"{without_secrets(registry.uri)} takes no tag ({without_secrets(one_line(error))}); expected it "
            "to take one; see the server's log, then run the same command again"
        ) from error
    if found != value:
        raise DiffBFRError(
            f"{without_secrets(registry.uri)} gives back {found!r}, written was {value!r}; expected the "
            "same; use another server"
        )
    _try_artifacts(registry, value)
    return f"{without_secrets(registry.uri)}: tag and file written, read back"


def _try_artifacts(registry: Registry, value: str) -> None:
    """Store a file where the experiment keeps those of its runs, read it and remove it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = registry.client.get_experiment(registry.experiment_id).artifact_location
    place = f"{location.rstrip('/')}/doctor-{value[:8]}"
    try:
        store: Any = get_artifact_repository(place, tracking_uri=registry.uri)
        with tempfile.TemporaryDirectory() as folder:
            sent = Path(folder, "file")
            sent.write_text(value)
            store.log_artifact(str(sent))
            Path(folder, "back").mkdir()
            back = Path(store.download_artifacts("file", dst_path=str(Path(folder, "back"))))
            same = back.read_text() == value
        with contextlib.suppress(Exception):  # not every store deletes; a file of 32 bytes does no harm
            store.delete_artifacts()
    except Exception as error:  # every artifact store has errors of its own
        raise UsageError(
            f"the artifact store {without_secrets(place)} of {without_secrets(registry.uri)} takes no file "
            f"({without_secrets(one_line(error))}); expected it to keep one; check --artifacts-destination "
            "of the server and its credentials, or yours where the store is not behind the server"
        ) from error
    if not same:
        raise DiffBFRError(
            f"the artifact store {without_secrets(place)} gives back another file than was sent; expected "
            "the same; use another store"
        )


def _check_sqlite(registry: Registry, file: Path) -> None:
    shown = without_secrets(registry.uri)
    try:
        database = sqlite3.connect(
            f"file:{quote(str(file))}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None
        )
        with contextlib.closing(database):
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE diffbfr_check (one INTEGER)")
            database.execute("ROLLBACK")
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        if "locked" in str(error) or "full" in str(error):
            raise IncompleteError(
                f"the tracking database {shown} is busy or has no room ({error}); expected it to take a "
                "change; run the same command again"
            ) from error
        raise UsageError(
            f"the tracking database {shown} cannot be written ({error}); expected one that is open to you "
            "and made by MLflow; correct its rights, or tracking.uri"
        ) from error
    version = str(row[0]) if row else "none"
    head = _schema_head()
    if head and version != head:
        raise UsageError(describe_schema(registry.uri, version))


def _schema_head() -> str:
    """The newest schema of the installed MLflow, "" if that cannot be told; MLflow is not imported."""
    found = importlib.util.find_spec("mlflow")
    places = list(found.submodule_search_locations or ()) if found else []
    revisions: set[str] = set()
    earlier: set[str] = set()
    for file in Path(places[0], "store", "db_migrations", "versions").glob("*.py") if places else ():
        for down, revision in _REVISION.findall(file.read_text()):
            (earlier if down else revisions).add(revision)
    heads = revisions - earlier
    return heads.pop() if len(heads) == 1 else ""
