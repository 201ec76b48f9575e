"""The folder that a rank trains in: the training's own, or, if it is on S3, a local one that is uploaded."""

import fcntl
import hashlib
import itertools
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipelines import storage
from pipelines.cluster.pool import with_retries

_CHECKPOINTS = "checkpoints"
_FAILED_UPLOADS = "failed-uploads"
_STEP = re.compile(r"step-\d+")
_IS_CHECKPOINT_FILE = re.compile(r"[A-Za-z0-9._-]+\.(json|safetensors)").fullmatch


@contextmanager
def workspace(folder: str) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield the folder to train in and a function that publishes a finished file or checkpoint of it.

    Without S3 nothing has to be published. With S3 each rank has a folder of its own in the cache of its
    machine, which starts with the stored checkpoints; only rank 0 uploads. A file whose upload fails is kept
    beside these folders until a later upload succeeds.
    """
    if not storage.is_remote(folder):
        yield storage.local_path(folder), lambda path: None
        return
    digest = hashlib.sha256(storage.absolute(folder).encode()).hexdigest()
    home = storage.cache_folder("trainings") / digest[:20]
    uploads = int(os.environ.get("RANK", "0")) == 0
    with _free_folder(home) as local:
        for step in storage.list_dir(storage.join(folder, _CHECKPOINTS)):
            if not _STEP.fullmatch(step):
                continue
            fetched = storage.fetch_tree(
                storage.join(folder, _CHECKPOINTS, step), local / "fetched", _IS_CHECKPOINT_FILE
            )
            (local / _CHECKPOINTS).mkdir(exist_ok=True)
            fetched.rename(local / _CHECKPOINTS / step)

        def publish(path: Path) -> None:
            if uploads:
                _upload(path, path.relative_to(local), folder, home / _FAILED_UPLOADS)

        yield local, publish


@contextmanager
def _free_folder(home: Path) -> Iterator[Path]:
    """Yield the first numbered folder that no living process has locked, empty; it is removed at the end.

    Ray ends ranks by killing them, so that they cannot clean up: the next attempt gets the same folder and
    removes what is in it.
    """
    storage.make_cache(home)
    for number in itertools.count():
        with (home / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            free = home / str(number)
            shutil.rmtree(free, ignore_errors=True)
            free.mkdir()
            try:
                yield free
            finally:
                shutil.rmtree(free, ignore_errors=True)
            return


def _upload(path: Path, name: Path, folder: str, failed: Path) -> None:
    """Upload a finished file or checkpoint, and delete uploaded checkpoints that were deleted here.

    What the network failed is tried again like a task. If the upload fails for good, the file is moved to the
    folder `failed`: a TransportError if it may succeed later, else a StorageError.
    """
    target = storage.join(folder, name.as_posix())
    try:
        with_retries(partial(_put, path), target)
    except Exception as error:  # each storage client has exceptions of its own
        kept = failed / name
        storage.remove_tree(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = storage.TransportError if storage.is_transient(error) else storage.StorageError
        raise kind(
            f"{target} could not be stored ({reason}); expected a place that takes it; it is kept on "
            f"{platform.node()} in {kept}; run the "
            "same command again to go on from the checkpoint before"
        ) from error
    storage.remove_tree(failed / name)
    if name.parent.name == _CHECKPOINTS:
        _keep_only(path.parent, storage.join(folder, _CHECKPOINTS))


def _put(path: Path, target: str) -> None:
    from diffbfr.checkpoint import MANIFEST

    if path.is_dir():
        storage.put_tree(path, target, last=MANIFEST)
    else:
        storage.write_atomic(target, path.read_bytes())


def _keep_only(kept: Path, uploaded: str) -> None:
    """Delete uploaded checkpoints that are no longer in the local folder `kept`."""
    for step in storage.list_dir(uploaded):
        if not (kept / step).exists():
            storage.remove_tree(storage.join(uploaded, step))
