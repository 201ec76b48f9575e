"""Copies of folders on S3 in a cache on this machine, with a digest of each file, checked at every use.

A file is verified while it is fetched (`storage/s3.py`), and its sha256 is kept. A cached file with another
digest, such as one that a failing disk has altered, is fetched again.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffbfr.errors import UsageError
from pipelines.storage import local, s3
from pipelines.storage.entry import Entry
from pipelines.storage.errors import UnsafePlaceError
from pipelines.storage.files import (
    Uri,
    absolute,
    digest,
    is_remote,
    join,
    local_path,
    read_bytes,
    reopen_folder,
    walk,
    write_json,
)


def cache_folder(room: str) -> Path:
    """Return the folder for copies from S3 on this machine, which `make_cache` makes.

    It is `DIFFBFR_CACHE`, else `diffbfr` in `XDG_CACHE_HOME`, else in `~/.cache`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = Path(os.environ.get("DIFFBFR_CACHE") or Path(base) / "diffbfr")
    try:
        return place.expanduser() / room
    except RuntimeError:  # this user has no home: it fails where a copy is made, if any is
        return Path(os.devnull) / room


def make_cache(folder: Path) -> None:
    """Make a folder of the cache; UsageError if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(
            f"no room for local copies in {folder} ({error.strerror}); expected a writable folder; set "
            "DIFFBFR_CACHE to one"
        ) from error


def check_key(key: str, where: Uri) -> None:
    """Raise `UnsafePlaceError` if a key, as the path of a file in a folder, could lead out of that folder."""
    parts = key.split("/")
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise UnsafePlaceError(
            f"{where} holds the key {key!r}, which is no path inside a folder; expected plain names joined "
            "by /; remove it, or name another place"
        )


def fetch_tree(uri: Uri, cache: Path, wanted: Callable[[str], object] = lambda key: True) -> Path:
    """Return the path of a folder on this machine: its own, or that of a copy from S3 under `cache`.

    Of a folder on S3 the files are fetched whose key below it is `wanted`, unless the copy of an earlier call
    has this version and its digest. FileNotFoundError if there is none, `UnsafePlaceError` if a key could
    lead out of the folder.
    """
    if not is_remote(uri):
        return local_path(uri)
    make_cache(cache)
    target = cache / hashlib.sha256(absolute(uri).encode()).hexdigest()[:20]
    record = cache / f"{target.name}.json"
    known = _read_record(record)
    entries = list(_entries(uri, wanted))
    if not entries:
        raise FileNotFoundError(str(uri))
    reopen_folder(target)
    now: dict[str, Any] = {}
    for entry in entries:
        place = target / entry.path
        kept = known.get(entry.path)
        sha256 = kept["sha256"] if kept is not None and kept["version"] == entry.version else ""
        if not sha256 or not place.is_file() or digest(place) != sha256:
            sha256 = _fetch(join(uri, entry.path), entry, place, target)
        now[entry.path] = {"version": entry.version, "sha256": sha256}
    if now != known:
        write_json(record, now)
    return target


def _entries(uri: Uri, wanted: Callable[[str], object]) -> Iterator[Entry]:
    for entry in walk(uri):
        check_key(entry.path, uri)
        if wanted(entry.path):
            yield entry


def _fetch(uri: str, entry: Entry, place: Path, target: Path) -> str:
    """Fetch one file, verified, and return its sha256."""
    local.refuse_links(place, target)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = local.draft(place)
    try:
        with unfinished.open("xb") as file:
            sha256 = s3.fetch(s3.connect(), uri, entry.version, entry.num_bytes, file)
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return sha256


def _read_record(place: Path) -> Mapping[str, Mapping[str, str]]:
    """What earlier calls fetched: version and sha256 by key; empty without a readable record."""
    try:
        record = json.loads(read_bytes(place))
        return {
            str(key): {"version": str(known["version"]), "sha256": str(known["sha256"])}
            for key, known in record.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
