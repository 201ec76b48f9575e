"""The folder of temporary files: usable, and with a path that leaves room for what is made in it."""

import os
import tempfile

from diffbfr.errors import UsageError

MAX_BYTES = 256
"""SQLite takes paths of up to 512 bytes; folders and names of temporary files come below this one."""
_DEFAULT = "/tmp"


def use_temporary_folder() -> None:
    """Use `/tmp` where the path of `TMPDIR` is too long; UsageError if no folder can be written."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UsageError(
            f"no folder for temporary files ({error.strerror}); expected a writable one with room; set "
            "TMPDIR to one"
        ) from error
    if len(os.fsencode(folder)) > MAX_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = _DEFAULT
