"""The commands put together, and how an error ends them."""

import os
import sys

import typer

from diffbfr.errors import DiffBFRError, IncompleteError, UsageError
from pipelines.cli.arguments import PhotosCommand
from pipelines.cli.data import data
from pipelines.cli.doctor import doctor
from pipelines.cli.models import models
from pipelines.cli.restore import restore
from pipelines.cli.run import condition, evaluate, run, shard, train

TRACEBACK_VARIABLE = "DIFFBFR_TRACEBACK"
_INTERRUPTED = 130
_NOT_TO_BE_HAD = (PermissionError, NotADirectoryError, IsADirectoryError, FileNotFoundError)

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
app.command(cls=PhotosCommand)(evaluate)
app.command(cls=PhotosCommand)(restore)
app.add_typer(models, name="models")
app.add_typer(data, name="data")
app.command()(doctor)


def main() -> None:
    """Run the command line; a user's error is one line and its exit code, with a traceback only on
    `DIFFBFR_TRACEBACK=1`.

    What the system refuses is an error of the command where it is about what the user named, and may be given
    the next time elsewhere (a full disk, a network). So may what MLflow refuses (its database is locked, its
    server is too busy): nothing of it is ours to mend.
    """
    try:
        app()
    except DiffBFRError as error:
        _end(error, str(error), error.exit_code)
    except _NOT_TO_BE_HAD as error:
        _end(
            error,
            f"{_of_system(error)}; expected it to be there and open to you; name another, or mend it",
            UsageError.exit_code,
        )
    except OSError as error:
        _end(
            error,
            f"{_of_system(error)}; expected it to be done; run the same command again",
            IncompleteError.exit_code,
        )
    except Exception as error:
        if not _is_mlflows(error):
            raise
        _end(
            error,
            f"the registry answered {error}; expected what was asked for; run the same command again",
            IncompleteError.exit_code,
        )
    except KeyboardInterrupt:
        typer.echo("diffbfr: interrupted; the same command goes on from here", err=True)
        sys.exit(_INTERRUPTED)


def _end(error: Exception, line: str, exit_code: int) -> None:
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        raise error
    typer.echo(f"diffbfr: {' '.join(line.split())}", err=True)
    sys.exit(exit_code)


def _of_system(error: OSError) -> str:
    """What the system said, and of what."""
    said = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {said}" if error.filename is not None else said


def _is_mlflows(error: Exception) -> bool:
    """Whether MLflow raised it: only if it was imported it can have."""
    module = sys.modules.get("mlflow.exceptions")
    return module is not None and isinstance(error, module.MlflowException)
