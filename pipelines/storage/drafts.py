"""Names of unfinished files, and the rule by which the files of a writer that is gone are removed.

A file is written under such a name and then renamed, so a killed writer leaves one behind. The name holds the
process and its machine: on the same machine the file of a dead process is removed at once, another one when
nothing was written to it for an hour.
"""

import contextlib
import hashlib
import os
import platform
import re
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Final

_ABANDONED_S: Final = 3600.0
_NAME: Final = re.compile(r"\.diffbfr-[0-9a-f]{12}-(?P<machine>[0-9a-f]{6})-(?P<process>\d{1,10})\.tmp")
_EARLIER: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp|\.diffbfr-probe-[0-9a-f]{32}", re.DOTALL)
"""Names that earlier versions gave."""


def draft_name() -> str:
    """Return a new name; it is short, so that any name that a folder can hold can be written through it."""
    return f".diffbfr-{uuid.uuid4().hex[:12]}-{_machine()}-{os.getpid()}.tmp"


def is_draft(name: str) -> bool:
    """True for the name of an unfinished file of this program, and for no other."""
    return bool(_NAME.fullmatch(name) or _EARLIER.fullmatch(name))


def is_abandoned(name: str, modified: float) -> bool:
    """True if nobody goes on writing an unfinished file, which was last written at `modified`."""
    match = _NAME.fullmatch(name)
    if match and match["machine"] == _machine() and not _is_alive(int(match["process"])):
        return True
    return time.time() - modified > _ABANDONED_S


@lru_cache(maxsize=1)
def _machine() -> str:
    """Six digits for the space in which a process number is unique: host, its start, the container."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # not on every system
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:6]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
