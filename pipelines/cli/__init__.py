"""The command line: `app.py` assembles the commands, each of which is a thin module.

No heavy package is imported before a command runs, so that `diffbfr --help` takes less than half a second.
"""

import os

# before torch is imported: on shared cores, threads that spin at barriers cost most of the speed
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pipelines.cli.app import main

__all__ = ["main"]
