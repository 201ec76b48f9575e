"""The weights of the face detector that a dataset is made with: a copy in the dataset, for every worker."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from diffbfr.errors import UsageError
from diffbfr.shards import ShardDamagedError
from pipelines import storage

if TYPE_CHECKING:
    from pipelines.dataset.samples import ShardConfig

DETECTOR: Final = "detector"
"""Folder of the copy, which is named by its digest."""


def store_detector(root: str, config: "ShardConfig", detector: Path | None) -> str:
    """Copy the weights into the dataset unless they are there; return where, "" if no face is looked for."""
    if not config.align:
        return ""
    if detector is None:
        raise UsageError("faces are to be aligned and no detector was given; expected its weights; name them")
    data = detector.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != config.detector:
        raise UsageError(
            f"{detector} has sha256 {found[:12]}; expected {config.detector[:12]}; run the same command again"
        )
    uri = storage.join(root, DETECTOR, f"{found}{detector.suffix}")
    if not storage.exists(uri) or storage.digest(uri) != found:
        storage.write_atomic(uri, data, within=root)
    return uri


@lru_cache(maxsize=4)
def fetch_detector(uri: str, sha256: str) -> str:
    """The path of the weights on this machine, checked once in each process."""
    path = storage.local_path(uri) if not storage.is_remote(uri) else _cached(uri, sha256)
    if not path.is_file() or storage.digest(path) != sha256:
        raise ShardDamagedError(
            f"{uri} is not the face detector that this dataset was begun with; expected sha256 "
            f"{sha256[:12]}; remove it and run the same command again"
        )
    return str(path)


def _cached(uri: str, sha256: str) -> Path:
    """A copy in this machine's cache, under its digest."""
    cache = storage.cache_folder("detectors")
    path = cache / f"{sha256}{Path(uri).suffix}"
    if not path.is_file() or storage.digest(path) != sha256:
        storage.make_cache(cache)
        storage.write_atomic(path, storage.read_bytes(uri))
    return path
