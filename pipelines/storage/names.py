"""The names in one folder that pass a filter; the others, which may be ten million, are not held."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.storage import s3


def find_names(folder: str, wanted: Callable[[str], bool], prefix: str = "") -> list[str]:
    """Return the names that are `wanted` and start with `prefix`, sorted; those of folders end with `/`.

    S3 lists only names with the prefix. A folder that does not exist has no names.
    """
    names = _remote(folder, prefix) if folder.startswith(s3.SCHEME) else _local(Path(folder))
    return sorted(name for name in names if name and name.startswith(prefix) and wanted(name))


def _local(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                yield f"{entry.name}/" if entry.is_dir() else entry.name


def _remote(folder: str, prefix: str) -> Iterator[str]:
    bucket, _, key = folder.rstrip("/").removeprefix(s3.SCHEME).partition("/")
    parent = f"{key}/" if key else ""
    for name, _, _ in s3.list_keys(s3.connect(), bucket, f"{parent}{prefix}", delimiter="/"):
        yield name.removeprefix(parent)
