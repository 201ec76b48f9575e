"""Output names in the mirror of an archive: safe, with a suffix of their format, and unique anywhere."""

import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
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

_ESCAPED_BYTE: Final = re.compile(r"\\x([89a-f][0-9a-f])")
_DIGEST_DIGITS: Final = 16
_PNG: Final = ".png"
_MAX_SUFFIX_BYTES: Final = 16
_FOLDER, _FILE, _EARLIER = 1, 2, 4


@dataclass(frozen=True)
class Naming:
    """How an input's name becomes its output's.

    `file_format` is that of all outputs. Without it each keeps its name, and one of a format that is not
    written back gets `.png` behind it (`copied_name` takes that off again).
    """

    file_format: WantedFormat | None = "png"

    def short(self, name: str) -> str:
        """The name that an output has if nothing else has it."""
        if self.file_format is None:
            return f"{name}{_PNG}" if _is_foreign(name) else name
        suffix = _suffix(name)
        known = SUFFIXES[self.file_format]
        if suffix.lower() in known and self.file_format != "png":
            return name
        stem = name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
        return f"{stem}{known[0]}"


PNG_NAMING: Final = Naming("png")


def copied_name(output: str, name: str) -> str:
    """The output's name where an input that was to become PNG under `name` and `.png` keeps its format."""
    return output.removesuffix(_PNG) if _is_foreign(name) else output


def output_names(
    names: Iterable[str], taken: Mapping[str, str], naming: Naming = PNG_NAMING
) -> dict[str, str]:
    """Map each input's name to its output's, relative to the output folder; see `OutputNamer`."""
    listed = list(names)
    with closing(sqlite3.connect(":memory:")) as db:
        namer = OutputNamer(db, naming, taken.values(), listed)
        new = {name: namer.assign(name) for name in listed if name not in taken}
    return {**taken, **new}


class OutputNamer:
    """Gives each input the name of its output, relative to the output folder.

    Where all outputs are PNG, `trip/a.jpg` becomes `trip/a.png`, and inputs that would share a name, also on
    a file system that ignores case or composes accents, keep their suffix: `a.jpg.png` and `a.tif.png`; so
    does an input whose output would have the name of another's folder. A number is added if that is not
    enough, and where names are kept. A name that is too long for a file system is shortened and gets a
    digest.

    `taken` holds the names that earlier runs assigned, `listed` every input. If the others are assigned in
    the order of the listing, an interrupted and resumed run of an unchanged archive gives the names of an
    uninterrupted one. All names are kept in tables of `db`, so that memory does not grow with them.
    """

    def __init__(
        self, db: sqlite3.Connection, naming: Naming, taken: Iterable[str], listed: Iterable[str]
    ) -> None:
        self._db = db
        self._naming = naming
        self._mirror = _Mirror(db, taken)
        db.execute("CREATE TABLE short_name (path TEXT PRIMARY KEY, uses INTEGER) WITHOUT ROWID")
        for name in listed:
            safe = _safe(name)
            self._mirror.plan(safe)
            if naming.file_format is not None:
                db.execute(
                    "INSERT INTO short_name VALUES (?, 1) ON CONFLICT (path) DO UPDATE SET uses = uses + 1",
                    (_normalized(naming.short(safe)),),
                )

    def assign(self, name: str) -> str:
        """The name of an input's output, which nothing else has."""
        safe = _safe(name)
        short = self._naming.short(safe)
        suffix = _suffix(short)
        if self._naming.file_format is None:
            return self._mirror.add(safe, short, short.removesuffix(suffix), suffix)
        (uses,) = self._db.execute(
            "SELECT uses FROM short_name WHERE path = ?", (_normalized(short),)
        ).fetchone()
        return self._mirror.add(safe, short if uses == 1 else "", safe, suffix)


class _Mirror:
    """The files and folders of a mirror, each by its path as a file system that ignores case compares it."""

    def __init__(self, db: sqlite3.Connection, files: Iterable[str]) -> None:
        """Begin with the files of earlier runs."""
        self._db = db
        db.execute("CREATE TABLE place (path TEXT PRIMARY KEY, kind INTEGER NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TABLE number (path TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID")
        self._has_earlier = False
        # listings are sorted, so that most names have the folder of the name before
        self._planned = ""
        self._beside = ("", "")
        for file in files:
            folder, slash, name = file.rpartition("/")
            self._plan_folder(folder)
            self._mark(f"{_normalized_path(folder)}{slash}{_normalized(name)}", _EARLIER)
            self._has_earlier = True
        self._planned = ""

    def plan(self, safe: str) -> None:
        """Keep the folders of a file that is to be added from being taken by a file."""
        self._plan_folder(self._beside_files(safe.rpartition("/")[0]))

    def add(self, safe: str, short: str, stem: str, suffix: str) -> str:
        """Add a file under the first free name: short, else stem and suffix, else those with a number."""
        folder, slash, _ = safe.rpartition("/")
        folder = self._beside_files(folder)
        parent, stem = f"{_normalized_path(folder)}{slash}", stem.rpartition("/")[2]
        for candidate in (short.rpartition("/")[2], f"{stem}{suffix}"):
            name = _fitting(candidate, suffix)
            if name and self._take(parent, name):
                return f"{folder}{slash}{name}"
        # numbers are never freed, so that each is tried once, however many names are equal
        counted = f"{parent}{_normalized(f'{stem}{suffix}')}"
        while True:
            (number,) = self._db.execute(
                "INSERT INTO number VALUES (?, 2) ON CONFLICT (path) DO UPDATE SET next = next + 1 "
                "RETURNING next",
                (counted,),
            ).fetchone()
            name = _fitting(f"{stem}.{number}{suffix}", suffix)
            if self._take(parent, name):
                return f"{folder}{slash}{name}"

    def _take(self, parent: str, name: str) -> bool:
        """Add a file to a folder unless something has its name."""
        path = f"{parent}{_normalized(name)}"
        return self._db.execute("INSERT OR IGNORE INTO place VALUES (?, ?)", (path, _FILE)).rowcount == 1

    def _plan_folder(self, folder: str) -> None:
        if folder == self._planned:
            return
        self._planned = folder
        path = _normalized_path(folder)
        while path:
            self._mark(path, _FOLDER)
            path = path.rpartition("/")[0]

    def _mark(self, path: str, kind: int) -> None:
        self._db.execute(
            "INSERT INTO place VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET kind = kind | excluded.kind",
            (path, kind),
        )

    def _beside_files(self, folder: str) -> str:
        """Return a folder of which no part has the name of a file that an earlier run wrote."""
        if not self._has_earlier or not folder:
            return folder
        if self._beside[0] != folder:
            kept = ""
            for part in folder.split("/"):
                while self._is_earlier(f"{_normalized_path(kept)}{_normalized(part)}"):
                    part = f"{part}_"
                kept = f"{kept}{part}/"
            self._beside = folder, kept[:-1]
        return self._beside[1]

    def _is_earlier(self, path: str) -> bool:
        row = self._db.execute("SELECT kind FROM place WHERE path = ?", (path,)).fetchone()
        return row is not None and bool(row[0] & _EARLIER)


def _is_foreign(name: str) -> bool:
    """Whether a name is that of a picture in a format that is not written."""
    suffix = _suffix(name).lower()
    return suffix in IMAGE_SUFFIXES and not any(suffix in written for written in SUFFIXES.values())


def _safe(name: str) -> str:
    """Keep a name inside the output folder: an archive may hold `../x`, `/x`, `C:\\x`, the control folder.

    Bytes that are no UTF-8, which a listing writes as `\\xe9`, become `%e9`, as in the names of a zip.
    """
    cleaned = _ESCAPED_BYTE.sub(r"%\1", name).replace("\\", "/").replace("\0", "").split("/")
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


def _suffix(name: str) -> str:
    """What `PurePosixPath.suffix` gives; a path would intern its parts for the life of the process."""
    file = name.rpartition("/")[2]
    dot = file.rfind(".")
    return file[dot:] if 0 < dot < len(file) - 1 else ""


def _cut(text: str, num_bytes: int) -> str:
    return text.encode()[:num_bytes].decode(errors="ignore")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def _normalized(name: str) -> str:
    """Normalise names that a case- or Unicode-insensitive file system would treat as equal."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _normalized_path(path: str) -> str:
    return "/".join(map(_normalized, path.split("/")))
