"""The names in one folder that pass a filter, and all objects below a prefix, whatever they are called."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.storage import s3
from pipelines.storage.entry import Entry


def find_names(folder: str, wanted: Callable[[str], bool], prefix: str = "") -> list[str]:
    """Return the names that are `wanted` and start with `prefix`, sorted; those of folders end with `/`.

    The others, which may be ten million, are not held. S3 lists only names with the prefix. A folder that
    does not exist has no names.
    """
    names = _remote(folder, prefix) if folder.startswith(s3.SCHEME) else _local(Path(folder))
    return sorted(name for name in names if name and name.startswith(prefix) and wanted(name))


def list_objects(uri: str) -> Iterator[Entry]:
    """Yield every object below a prefix of S3, in order, also those that stand for folders (`a/`).

    In contrast to `walk`, no name is left out: what others put into a bucket may be called as they like.
    """
    bucket, _, key = uri.rstrip("/").removeprefix(s3.SCHEME).partition("/")
    prefix = f"{key}/" if key else ""
    for name, num_bytes, version in s3.list_keys(s3.connect(), bucket, prefix):
        if name != prefix:
            yield Entry(name.removeprefix(prefix), num_bytes, version)


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
