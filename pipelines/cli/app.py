"""The command line application, and how an error ends a command."""

import os
import sys

import typer

from diffbfr.errors import DiffBFRError, IncompleteError, UsageError, one_line
from pipelines.cli.arguments import PhotosCommand
from pipelines.cli.data import data
from pipelines.cli.doctor import doctor
from pipelines.cli.evaluate import evaluate
from pipelines.cli.models import models
from pipelines.cli.output import guard_streams, say_error
from pipelines.cli.restore import restore
from pipelines.cli.run import condition, distill, run, shard, train
from pipelines.cli.serve import serve
from pipelines.cli.setup import setup
from pipelines.cli.signals import EndingSignals
from pipelines.storage.temporary import use_temporary_folder

TRACEBACK_VARIABLE = "DIFFBFR_TRACEBACK"
_INTERRUPTED = 130
"""How typer ends a command that Ctrl-C interrupted."""
_FILE_ERRORS = (PermissionError, NotADirectoryError, IsADirectoryError, FileNotFoundError)

app = typer.Typer(
    name="diffbfr",
    help=(
        "Blind face restoration: photos to shards, three trained stages, a registered cascade, restored "
        "archives."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=PhotosCommand)(run)
app.command(cls=PhotosCommand)(shard)
app.command(cls=PhotosCommand)(train)
app.command(cls=PhotosCommand)(condition)
app.command(cls=PhotosCommand)(distill)
app.command(cls=PhotosCommand)(evaluate)
app.command(cls=PhotosCommand)(restore)
app.command("app")(serve)
app.add_typer(models, name="models")
app.add_typer(data, name="data")
app.add_typer(setup, name="setup")
app.command()(doctor)


def main() -> None:
    """Run the command line; an error that the user can mend is one line and an exit code.

    `DIFFBFR_TRACEBACK=1` shows the traceback too. Errors of the system about a file that the user named exit
    with 2. Other errors of the system (a full disk, a network), and those of MLflow (a locked database, a
    busy server), may pass: they exit with 3, and the same command can be run again. SIGTERM and SIGHUP end a
    command as Ctrl-C does, and it exits with 128 and the number of the signal.
    """
    guard_streams()
    signals = EndingSignals(_say)
    signals.install()
    try:
        line, exit_code = _run()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == _INTERRUPTED
        if not (interrupted or signals.received):
            raise
        line, exit_code = signals.line, signals.exit_code
    if signals.received:  # what failed meanwhile failed because of it
        line, exit_code = signals.line, signals.exit_code
    _say(line)
    sys.exit(exit_code)


def _run() -> tuple[str, int]:
    """Run the command, which exits; returns the line and the exit code of an error that is known."""
    try:
        use_temporary_folder()
        app()
    except DiffBFRError as error:
        return _end(error, str(error), error.exit_code)
    except _FILE_ERRORS as error:
        return _end(
            error,
            f"{_system_message(error)}; expected it to be there and open to you; name another, or mend it",
            UsageError.exit_code,
        )
    except OSError as error:
        from pipelines.storage import remedy_for

        remedy = remedy_for(error)
        first = f"{remedy}, then " if remedy else ""
        return _end(
            error,
            f"{_system_message(error)}; expected it to be done; {first}run the same command again",
            IncompleteError.exit_code,
        )
    except Exception as error:
        if not _is_mlflow_error(error):
            raise
        from pipelines.tracking.access import explain

        known = explain("", error)
        if known is not None:
            return _end(known, str(known), known.exit_code)
        return _end(
            error,
            f"the registry answered {error}; expected what was asked for; run the same command again",
            IncompleteError.exit_code,
        )
    sys.exit(0)


def _end(error: Exception, line: str, exit_code: int) -> tuple[str, int]:
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        raise error
    return line, exit_code


def _say(line: str) -> None:
    say_error(f"diffbfr: {' '.join(line.split())}")


def _system_message(error: OSError) -> str:
    """Return the message of the system, with the file that it is about."""
    message = error.strerror or one_line(error)
    return f"{error.filename}: {message}" if error.filename is not None else message


def _is_mlflow_error(error: Exception) -> bool:
    """True if `error` is an MlflowException. Does not import mlflow."""
    module = sys.modules.get("mlflow.exceptions")
    return module is not None and isinstance(error, module.MlflowException)
