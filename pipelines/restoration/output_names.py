"""Output names in the mirror of an archive: safe, with the suffix `.png`, and unique on every file system."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import PurePosixPath

from pipelines.restoration.request import CONTROL
from pipelines.sources import IMAGE_SUFFIXES


def output_names(names: Iterable[str], taken: Mapping[str, str]) -> dict[str, str]:
    """Map each input's name to its output's, relative to the output folder.

    `trip/a.jpg` becomes `trip/a.png`. Inputs that would share a name, also on a file system that ignores case
    or composes accents, keep their suffix: `a.jpg.png` and `a.tif.png`; a number is added if that is not
    enough. `taken` holds the names that earlier runs assigned; they are kept. For an unchanged archive an
    interrupted and resumed run assigns the names of an uninterrupted one.
    """
    listed = list(names)
    shared = Counter(_normalized(_with_png_suffix(name)) for name in listed)
    given = dict(taken)
    used = {_normalized(output) for output in given.values()}
    # candidates from the shortest name to the longest; the first unused one is taken
    for name in listed:
        if name in given:
            continue
        short, long = _with_png_suffix(name), f"{_safe(name)}.png"
        candidates = chain(
            [short] if shared[_normalized(short)] == 1 else [],
            [long],
            (f"{_safe(name)}.{n}.png" for n in count(2)),
        )
        given[name] = next(candidate for candidate in candidates if _normalized(candidate) not in used)
        used.add(_normalized(given[name]))
    return given


def _with_png_suffix(name: str) -> str:
    path = PurePosixPath(_safe(name))
    return str(path.with_suffix(".png")) if path.suffix.lower() in IMAGE_SUFFIXES else f"{path}.png"


def _safe(name: str) -> str:
    """Keep a name inside the output folder: an archive may hold `../x`, `/x`, `C:\\x`, the control folder."""
    parts = [
        part for part in name.replace("\\", "/").replace("\0", "").split("/") if part not in ("", ".", "..")
    ]
    if parts and parts[0].casefold() == CONTROL:
        parts[0] = f"_{parts[0]}"
    return "/".join(parts) or "_"


def _normalized(name: str) -> str:
    """Normalise names that a case- or Unicode-insensitive file system would treat as equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
