"""Files of the driver's disk for workers on other machines: copied once below a place that both reach.

PLACE/staged/DIGEST/NAME, where DIGEST is that of the content, so that a copy is never replaced by another.
"""

from pathlib import Path
from typing import Final

from diffbfr.digests import is_model_file
from pipelines import storage

STAGED: Final = "staged"
_DIGITS: Final = 20


def stage_file(path: str | Path, place: storage.Uri) -> str:
    """Copy a file of this machine below a place, unless it is there; returns its address."""
    target = storage.join(place, STAGED, storage.digest(path)[:_DIGITS], Path(path).name)
    if not storage.exists(target) or storage.size(target) != storage.size(path):
        storage.put_file(Path(path), target)
    return target


def stage_models(folder: str | Path, digest: str, place: storage.Uri) -> str:
    """Copy the files of models in a folder, whose digest is given, below a place; returns their address."""
    target = storage.join(place, STAGED, digest[:_DIGITS])
    for path in sorted(Path(folder).iterdir()):
        copy = storage.join(target, path.name)
        if is_model_file(path.name) and not (
            storage.exists(copy) and storage.size(copy) == path.stat().st_size
        ):
            storage.put_file(path, copy)
    return target


def staged_file(address: str) -> Path:
    """The file of `stage_file` on this machine: itself, or a copy from S3 whose digest is checked."""
    if not storage.is_remote(address):
        return storage.local_path(address)
    folder, _, name = address.rpartition("/")
    return storage.fetch_tree(folder, storage.cache_folder(STAGED)) / name
