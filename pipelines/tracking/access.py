"""Whether MLflow can be used at a URI, and what to do if not: one line instead of minutes of retries."""

import os
import re
import shlex
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from diffbfr.errors import DiffBFRError, IncompleteError, UsageError, one_line
from diffbfr.text import without_secrets

_PROBE_S = 5
_VERSION_CHARACTERS = 50
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_REFUSED_CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_REFUSED_STATUS = (401, 403)
_REFUSED_TEXT = re.compile(r"\berror code (?:401|403)\b")
_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")
_BUSY = re.compile(r"database is locked|disk is full|disk I/O error|too many (?:clients|connections)")
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def check_server(uri: str, experiment: str) -> None:
    """UsageError unless an MLflow server listens at an HTTP URI, and answers this user.

    The request is one of MLflow's own, so that its settings of TLS, proxies, credentials and of the time for
    an answer (`MLFLOW_HTTP_REQUEST_TIMEOUT`) hold for it.
    """
    _check_listens(uri)
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/get-by-name",
            "GET",
            max_retries=0,
            timeout=MLFLOW_HTTP_REQUEST_TIMEOUT.get(),  # type: ignore[no-untyped-call]
            raise_on_status=False,
            params={"experiment_name": experiment},
        )
    except MlflowException as error:
        raise UsageError(_describe_unreachable(uri, error)) from error
    if answer.status_code in _REFUSED_STATUS:
        raise UsageError(_describe_refusal(uri, f"{answer.status_code} {answer.reason}"))
    if answer.status_code < 500 and "json" not in answer.headers.get("Content-Type", ""):
        raise UsageError(
            f"what answers at {without_secrets(uri)} is no MLflow server ({answer.status_code} "
            f"{answer.reason}); expected one; correct tracking.uri"
        )


def server_version(uri: str) -> str:
    """The version of the MLflow server at an HTTP URI, "" if it does not tell."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        "/version",
        "GET",
        max_retries=0,
        timeout=_PROBE_S,
        raise_on_status=False,
    )
    return str(answer.text).strip() if answer.ok and len(answer.text) < _VERSION_CHARACTERS else ""


def check_database(uri: str) -> None:
    """UsageError unless a connection to a database can be made; MLflow would try for minutes."""
    _check_listens(uri)
    from mlflow.store.db.utils import create_sqlalchemy_engine

    with explained(uri):
        create_sqlalchemy_engine(uri).connect().close()  # type: ignore[no-untyped-call]


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Raise an error of the tracking database or server as one line that says what helps, if known."""
    try:
        yield
    except DiffBFRError:
        raise
    except Exception as error:
        explanation = explain(uri, error)
        if explanation is None:
            raise
        raise explanation from error


def explain(uri: str, error: Exception) -> DiffBFRError | None:
    """The error that the user can resolve behind one of MLflow, SQLAlchemy or a missing driver."""
    shown, text = without_secrets(uri), without_secrets(one_line(error))
    if found := _SCHEMA.search(text):
        return UsageError(describe_schema(uri, found[1]))
    if getattr(error, "error_code", "") in _REFUSED_CODES or _REFUSED_TEXT.search(text):
        return UsageError(_describe_refusal(uri, text))
    if isinstance(error, ModuleNotFoundError):
        return UsageError(
            f"{shown} needs the Python package {error.name}, which is not installed; expected it; install it "
            "or correct tracking.uri"
        )
    if not type(error).__module__.startswith("sqlalchemy."):
        return None
    reason = text.partition("(Background on")[0].strip()
    if _BUSY.search(text):
        return IncompleteError(
            f"the tracking database {shown} is busy or has no room ({reason}); expected it to take a change; "
            "run the same command again"
        )
    return UsageError(
        f"the tracking database {shown} cannot be opened ({reason}); expected one that is there, open to you "
        "and made by MLflow; correct tracking.uri"
    )


def _describe_unreachable(uri: str, error: Exception) -> str:
    causes = list(_causes(error))
    reason = without_secrets(one_line(causes[-1]))
    shown = without_secrets(uri)
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return (
            f"the certificate of the MLflow server at {shown} is not accepted ({reason}); expected one of an "
            "authority that this machine trusts; set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of "
            "that authority"
        )
    variables = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "REQUESTS_CA_BUNDLE")
    settings = [name for name in variables if not Path(os.environ.get(name) or "/").exists()]
    if settings:
        reason = f"{' and '.join(settings)} names a file that is not there"
    return _describe_no_answer(uri, reason)


def _describe_refusal(uri: str, reason: str) -> str:
    return (
        f"{without_secrets(uri) or 'the MLflow server'} refuses this user ({reason}); expected the right "
        f"to do this; set {_CREDENTIALS}"
    )


def describe_schema(uri: str, version: str) -> str:
    """What to do about a database whose tables are those of another MLflow."""
    import mlflow.store.db_migrations

    folder = Path(next(iter(mlflow.store.db_migrations.__path__))) / "versions"
    shown = without_secrets(uri)
    if any(folder.glob(f"{version}_*.py")):
        return (
            f"the tracking database {shown} was made by an earlier MLflow (schema {version}); expected that "
            f"of MLflow {mlflow.__version__}; back it up, then run `mlflow db upgrade {shlex.quote(shown)}`"
        )
    return (
        f"the tracking database {shown} was made by another MLflow (schema {version}, which MLflow "
        f"{mlflow.__version__} does not know); expected an earlier or the same one; install the MLflow that "
        "made it, or name another database with tracking.uri"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _check_listens(uri: str) -> None:
    """UsageError if nobody listens at the host of a URI; a proxy is not asked."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind not in _PORTS or not parts.hostname:
        return
    if kind in getproxies() and not proxy_bypass(parts.hostname):
        return
    place = parts.hostname, parts.port or _PORTS[kind]
    try:
        socket.create_connection(place, timeout=_PROBE_S).close()
    except OSError as error:
        raise UsageError(_describe_no_answer(uri, one_line(error))) from error


def _describe_no_answer(uri: str, reason: str) -> str:
    place = f"{without_secrets(uri)} ({reason})"
    found = (
        f"no MLflow server answers at {place}"
        if uri.startswith("http")
        else f"no database answers at {place}"
    )
    return f"{found}; expected a running one; start it or correct tracking.uri"
