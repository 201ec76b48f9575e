"""The end of a study's command: an error that the user can resolve is one line with its exit code."""

import sys
from collections.abc import Callable

from diffbfr.errors import DiffBFRError, one_line


def run_command(main: Callable[[], object]) -> None:
    """Run a study; a `DiffBFRError` ends the process with its line and its exit code."""
    try:
        main()
    except DiffBFRError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(error.exit_code)
