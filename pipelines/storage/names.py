"""The names in one folder, of which only the wanted ones are held: a folder may have ten million."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.storage import s3


def find_names(folder: str, wanted: Callable[[str], bool], begin: str = "") -> list[str]:
    """Return the wanted names, sorted, a folder's with `/` at its end; no folder, no names. S3 is asked
    only for those that `begin` so.
    """
    names = _remote(folder, begin) if folder.startswith(s3.SCHEME) else _local(Path(folder))
    return sorted(name for name in names if name and name.startswith(begin) and wanted(name))


def _local(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                yield f"{entry.name}/" if entry.is_dir() else entry.name


def _remote(folder: str, begin: str) -> Iterator[str]:
    bucket, _, key = folder.rstrip("/").removeprefix(s3.SCHEME).partition("/")
    prefix = f"{key}/" if key else ""
    for name, _, _ in s3.list_keys(s3.connect(), bucket, f"{prefix}{begin}", delimiter="/"):
        yield name.removeprefix(prefix)
