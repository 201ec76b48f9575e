"""Output names in the mirror of an archive: safe, with a suffix of their format, and unique anywhere."""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Final

from pipelines.restoration.photo_output import SUFFIXES, WantedFormat
from pipelines.restoration.request import CONTROL
from pipelines.sources import IMAGE_SUFFIXES

MAX_NAME_BYTES: Final = 255
"""Longest name of a file or a folder in UTF-8, on the file systems of Linux, macOS and Windows alike."""
MAX_FOLDER_BYTES: Final = 540
"""Longest folder of an output: with its file below 800 bytes, since a key on S3 may have 1024 in all."""
RESERVED: Final = frozenset(
    (CONTROL, "faces.parquet", "ledger.parquet", "report.html", "report_files", "restore.json")
)
"""Names in the output folder that are this project's own; a folder of the input gets `_` in front."""

_DIGEST_DIGITS: Final = 16
_PNG: Final = ".png"
_MAX_SUFFIX_BYTES: Final = 16


@dataclass(frozen=True)
class Naming:
    """How an input's name becomes its output's.

    `file_format` is that of all outputs. Without it each keeps its name, and one of a format that is not
    written back gets `.png` behind it (`copied_name` takes that off again).
    """

    file_format: WantedFormat | None = "png"

    def short(self, name: str) -> str:
        """The name that an output has if nothing else has it."""
        suffix = PurePosixPath(name).suffix.lower()
        if self.file_format is None:
            return f"{name}{_PNG}" if _is_foreign(name) else name
        known = SUFFIXES[self.file_format]
        if suffix in known and self.file_format != "png":
            return name
        path = PurePosixPath(name)
        return str(path.with_suffix(known[0])) if suffix in IMAGE_SUFFIXES else f"{path}{known[0]}"


PNG_NAMING: Final = Naming("png")


def copied_name(output: str, name: str) -> str:
    """The output's name where an input that was to become PNG under `name` and `.png` keeps its format."""
    return output.removesuffix(_PNG) if _is_foreign(name) else output


def output_names(
    names: Iterable[str], taken: Mapping[str, str], naming: Naming = PNG_NAMING
) -> dict[str, str]:
    """Map each input's name to its output's, relative to the output folder.

    Where all outputs are PNG, `trip/a.jpg` becomes `trip/a.png`, and inputs that would share a name, also on
    a file system that ignores case or composes accents, keep their suffix: `a.jpg.png` and `a.tif.png`; so
    does an input whose output would have the name of another's folder. A number is added if that is not
    enough, and where names are kept. A name that is too long for a file system is shortened and gets a
    digest. `taken` holds the names that earlier runs assigned; they are kept. For an unchanged archive an
    interrupted and resumed run assigns the names of an uninterrupted one.
    """
    listed = {name: _safe(name) for name in names}
    shared = Counter(_normalized(naming.short(safe)) for safe in listed.values())
    given = dict(taken)
    mirror = _Mirror(given.values(), listed.values())
    for name, safe in listed.items():
        if name not in given:
            short = naming.short(safe)
            suffix = PurePosixPath(short).suffix
            if naming.file_format is None:
                given[name] = mirror.add(safe, short, short.removesuffix(suffix), suffix)
            else:
                given[name] = mirror.add(safe, short if shared[_normalized(short)] == 1 else "", safe, suffix)
    return given


class _Mirror:
    """The files and folders of a mirror as a tree, in memory that is linear in the length of their names.

    A node is found by its parent and its name.
    """

    def __init__(self, files: Iterable[str], planned: Iterable[str]) -> None:
        """Begin with the files of earlier runs and the folders of all that are planned."""
        self._nodes: dict[tuple[int, str], int] = {}
        self._files: set[int] = set()
        self._earlier: set[int] = set()
        self._folders: set[int] = set()
        self._numbers: defaultdict[int, Iterator[int]] = defaultdict(lambda: count(2))
        for file in files:
            folder, _, name = file.rpartition("/")
            self._earlier.add(self._child(self._node(folder, self._folders), name))
        self._files.update(self._earlier)
        for file in planned:
            self._node(self._beside_files(file).rpartition("/")[0], self._folders)

    def add(self, safe: str, short: str, stem: str, suffix: str) -> str:
        """Add a file under the first free name: short, else stem and suffix, else those with a number."""
        folder, slash, _ = self._beside_files(safe).rpartition("/")
        parent, stem = self._node(folder), stem.rpartition("/")[2]
        for candidate in (short.rpartition("/")[2], f"{stem}{suffix}"):
            name = _fitting(candidate, suffix)
            if name and self._take(parent, name):
                return f"{folder}{slash}{name}"
        # numbers are never freed, so that each is tried once, however many names are equal
        for number in self._numbers[self._child(parent, f"{stem}{suffix}")]:
            name = _fitting(f"{stem}.{number}{suffix}", suffix)
            if self._take(parent, name):
                return f"{folder}{slash}{name}"
        raise AssertionError

    def _take(self, parent: int, name: str) -> bool:
        """Add a file to a folder unless something has its name."""
        node = self._child(parent, name)
        if node in self._files or node in self._folders:
            return False
        self._files.add(node)
        return True

    def _node(self, path: str, passed: set[int] | None = None) -> int:
        """Return the node of a path; the nodes on the way are added to `passed`."""
        node = 0
        for part in path.split("/") if path else ():
            node = self._child(node, part)
            if passed is not None:
                passed.add(node)
        return node

    def _child(self, node: int, part: str) -> int:
        return self._nodes.setdefault((node, _normalized(part)), len(self._nodes) + 1)

    def _beside_files(self, output: str) -> str:
        """Return a name none of whose folders has the name of a file that an earlier run wrote."""
        if not self._earlier:
            return output
        *folders, file = output.split("/")
        node, kept = 0, []
        for folder in folders:
            while self._child(node, folder) in self._earlier:
                folder = f"{folder}_"
            node = self._child(node, folder)
            kept.append(folder)
        return "/".join([*kept, file])


def _is_foreign(name: str) -> bool:
    """Whether a name is that of a picture in a format that is not written."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES and not any(suffix in written for written in SUFFIXES.values())


def _safe(name: str) -> str:
    """Keep a name inside the output folder: an archive may hold `../x`, `/x`, `C:\\x`, the control folder."""
    cleaned = name.replace("\\", "/").replace("\0", "").split("/")
    parts = [part for part in cleaned if part not in ("", ".", "..")]
    if not parts:
        return "_"
    if _is_reserved(parts[0]):
        parts[0] = f"_{parts[0]}"
    *folders, file = parts
    return "/".join([*_fitting_folders([_fitting(folder) for folder in folders]), file])


def _is_reserved(part: str) -> bool:
    """True if a file system may take a name for one of ours: some ignore case, format characters, dots."""
    if not part.isascii():
        part = "".join(character for character in part if unicodedata.category(character) != "Cf")
    return _normalized(part).rstrip(" .") in RESERVED


def _fitting(part: str, suffix: str = "") -> str:
    """Return a name that a file system takes: a long one is cut, and its digest put before its suffix."""
    if len(part.encode()) <= MAX_NAME_BYTES:
        return part
    end = f"~{_digest(part)}{suffix if len(suffix.encode()) <= _MAX_SUFFIX_BYTES else ''}"
    return f"{_cut(part, MAX_NAME_BYTES - len(end.encode()))}{end}"


def _fitting_folders(folders: list[str]) -> list[str]:
    """Return the folders as they are, or the first of them and a digest if all are too long for a path."""
    if sum(len(folder.encode()) + 1 for folder in folders) <= MAX_FOLDER_BYTES:
        return folders
    end = f"~{_digest('/'.join(folders))}"
    kept, room = [], MAX_FOLDER_BYTES - len(end) - 1
    for folder in folders:
        room -= len(folder.encode()) + 1
        if room < 0:
            break
        kept.append(folder)
    return [*kept, end]


def _cut(text: str, num_bytes: int) -> str:
    return text.encode()[:num_bytes].decode(errors="ignore")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def _normalized(name: str) -> str:
    """Normalise names that a case- or Unicode-insensitive file system would treat as equal."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
