"""The command line: few flags, the same words everywhere. `app.py` puts the commands together; each is a thin
file beside it.

Nothing heavy is imported before a command runs, so that `diffbfr --help` answers at once.
"""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: on shared cores, threads that spin at barriers cost most of the speed

from pipelines.cli.app import main

__all__ = ["main"]
