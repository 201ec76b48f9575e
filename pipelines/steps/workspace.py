"""Where a rank trains: the training's folder, or, where that is on S3, one of this machine, whose finished
files are put there.
"""

import fcntl
import hashlib
import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import storage

_CHECKPOINTS = "checkpoints"
_REFUSED = "refused"


@contextmanager
def workspace(folder: str) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield the folder to train in, and what to do with a file or checkpoint that is finished there: nothing,
    or put it on S3.

    On S3 each rank has a place of its own in the cache of its machine, with the checkpoints that are stored;
    rank 0 alone stores. What S3 refuses is kept beside the places until it is stored after all.
    """
    if not storage.is_remote(folder):
        yield storage.local_path(folder), lambda path: None
        return
    home = (
        storage.cache_folder("trainings") / hashlib.sha256(storage.absolute(folder).encode()).hexdigest()[:20]
    )
    stores = int(os.environ.get("RANK", "0")) == 0
    with _free_place(home) as local:
        for step in storage.list_dir(storage.join(folder, _CHECKPOINTS)):
            fetched = storage.fetch_tree(storage.join(folder, _CHECKPOINTS, step), local / "fetched")
            (local / _CHECKPOINTS).mkdir(exist_ok=True)
            fetched.rename(local / _CHECKPOINTS / step)
        yield (
            local,
            lambda path: _store(path, path.relative_to(local), folder, home / _REFUSED) if stores else None,
        )


@contextmanager
def _free_place(home: Path) -> Iterator[Path]:
    """Yield the first numbered folder that no living process holds, empty; it goes at the end.

    Nobody is told when a process is killed, as Ray ends ranks: what it left lies where the next attempt
    begins, and is removed by it.
    """
    home.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        with (home / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            place = home / str(number)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
            return


def _store(path: Path, name: Path, folder: str, refused: Path) -> None:
    """Put a finished file or folder where it belongs, and remove there the checkpoints that are no longer
    kept here.
    """
    from diffbfr.checkpoint import MANIFEST

    target = storage.join(folder, name.as_posix())
    try:
        if path.is_dir():
            storage.put_tree(path, target, last=MANIFEST)
        else:
            storage.write_atomic(target, path.read_bytes())
    except Exception as error:  # every storage client has errors of its own
        kept = refused / name
        storage.remove_tree(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise storage.StorageError(
            f"{target} could not be stored ({reason}); expected a place that takes it; it is kept on "
            f"{platform.node()} in {kept}; run the "
            "same command again to go on from the checkpoint before"
        ) from error
    storage.remove_tree(refused / name)
    if name.parent.name == _CHECKPOINTS:
        _keep_only(path.parent, storage.join(folder, _CHECKPOINTS))


def _keep_only(kept: Path, place: str) -> None:
    """Remove checkpoints that are no longer kept here from where they were put."""
    for step in storage.list_dir(place):
        if not (kept / step).exists():
            storage.remove_tree(storage.join(place, step))
