"""Names in the mirror of an archive: the input's relative name with the suffix `.png`, safe, and no two
the same on any file system.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import PurePosixPath

from pipelines.restoration.outcomes import CONTROL
from pipelines.sources import IMAGE_SUFFIXES


def output_names(names: Iterable[str], taken: Mapping[str, str]) -> dict[str, str]:
    """Map each input's name to its output's, relative to the output folder.

    `trip/a.jpg` becomes `trip/a.png`. Inputs that would share a name, also where a file system ignores case
    or composes accents, keep their suffix: `a.jpg.png` and `a.tif.png`; a number is the last resort. `taken`
    are the names that earlier runs gave: they stay. As long as the archive is the same, a run that was cut
    short and then continued gives the names of an undisturbed one.
    """
    listed = list(names)
    shared = Counter(_same(_with_png_suffix(name)) for name in listed)
    given = dict(taken)
    used = {_same(output) for output in given.values()}
    for name in listed:
        if name in given:
            continue
        short, long = _with_png_suffix(name), f"{_safe(name)}.png"
        candidates = chain(
            [short] if shared[_same(short)] == 1 else [], [long], (f"{_safe(name)}.{n}.png" for n in count(2))
        )
        given[name] = next(candidate for candidate in candidates if _same(candidate) not in used)
        used.add(_same(given[name]))
    return given


def _with_png_suffix(name: str) -> str:
    path = PurePosixPath(_safe(name))
    return str(path.with_suffix(".png")) if path.suffix.lower() in IMAGE_SUFFIXES else f"{path}.png"


def _safe(name: str) -> str:
    """Keep a name inside the output folder: an archive may call its members `../x`, `/x`, `C:\\x`, or
    after our control folder.
    """
    parts = [
        part for part in name.replace("\\", "/").replace("\0", "").split("/") if part not in ("", ".", "..")
    ]
    if parts and parts[0].casefold() == CONTROL:
        parts[0] = f"_{parts[0]}"
    return "/".join(parts) or "_"


def _same(name: str) -> str:
    """Write names that some file system takes for one in one way."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
