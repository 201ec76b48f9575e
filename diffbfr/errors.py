"""The errors a user can cause, each one line: what was found, what was expected, what to do next.

The command line prints them without a traceback and exits with their `exit_code`.
"""


class DiffBFRError(Exception):
    """Base of every error that the user or operator can resolve, so not a bug; exit code 1."""

    exit_code = 1


class UsageError(DiffBFRError, ValueError):
    """The request cannot be served: wrong option, missing folder, unfit checkpoint; exit code 2."""

    exit_code = 2


class DivergedError(DiffBFRError, FloatingPointError):
    """A training met NaN or infinity; the same run would again, so it is not retried. Exit code 1."""


class IncompleteError(DiffBFRError):
    """Some items were neither done nor quarantined; rerun the same command; exit code 3."""

    exit_code = 3


class QuarantineError(DiffBFRError):
    """More inputs were quarantined than `--max-bad` allows; exit code 4."""

    exit_code = 4


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
