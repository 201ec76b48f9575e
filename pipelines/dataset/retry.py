"""Retry of quarantined photos: for photos that could not be read or decoded for a transient reason.

The commit records of the shards with quarantined photos are moved to `withdrawn/`, so that the command that
made the dataset makes these shards again. Their good samples are taken from the old tars; only the
quarantined photos are read.
"""

from functools import partial
from typing import Final

from diffbfr.errors import UsageError
from diffbfr.shards import Sample
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.reuse import load_samples
from pipelines.dataset.samples import CachedSample, Face, remake_face
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, ShardTask

WITHDRAWN: Final = "withdrawn"


def find_latest_dataset(place: str) -> str | None:
    """The folder of a dataset, finished or not; None if there is none.

    This is `place` itself, or the dataset under that root which a command wrote to last.
    """
    if storage.exists(storage.join(place, BUILD_RECORD)):
        return storage.absolute(place)
    shards = storage.join(storage.absolute(place), "artifacts", "shard")
    folders = [storage.join(shards, name) for name in storage.list_dir(shards)]
    begun = [folder for folder in folders if storage.exists(storage.join(folder, BUILD_RECORD))]
    return max(begun, key=_last_write, default=None)


def begin_retry(dataset_root: str) -> tuple[int, int]:
    """Withdraw the records of shards with quarantined photos; return the number of photos and of shards.

    A dataset with appended columns is refused, because a model was trained on it.
    """
    root = storage.absolute(dataset_root)
    if storage.exists(storage.join(root, manifest.DATASET_RECORD)):
        appended = [column.column for column in manifest.read_columns(root) if column.model_digest]
        if appended:
            raise UsageError(
                f"{root} has the column {appended[0]} of a model that learnt from it; shard the photos under "
                "another --root"
            )
    photos = 0
    shards = 0
    for name in storage.list_dir(storage.join(root, COMMITS)):
        commit = commits.read(root, COMMITS, int(name.removesuffix(".json")))
        if commit is not None and commit.quarantined:
            # removed before any shard is: readers must not take the dataset for a finished one
            storage.remove_file(storage.join(root, manifest.DATASET_RECORD), within=root)
            record = storage.join(root, COMMITS, name)
            withdrawn = storage.join(root, WITHDRAWN, name)
            write_checksummed_json(withdrawn, read_checksummed_json(record), indent=None, within=root)
            storage.remove_file(record, within=root)
            photos += len(commit.quarantined)
            shards += 1
    return photos, shards


def restore_unchanged(task: ShardTask) -> dict[str, tuple[Face, ...]]:
    """The good samples of a withdrawn shard by photo, if it was made from the same photos in the same way."""
    commit = commits.read(task.dataset_root, WITHDRAWN, task.index)
    if commit is None or commit.task != task.digest:
        return {}
    of_photo: dict[str, list[Sample]] = {}
    for sample in commit.samples:
        of_photo.setdefault(sample.source, []).append(sample)
    kept = {}
    for source, samples in of_photo.items():
        cached = load_samples(task.dataset_root, commit, samples, task.config, task.config)
        if cached:
            kept[source] = tuple(map(partial(_remake, task), samples, cached))
    return kept


def _remake(task: ShardTask, sample: Sample, cached: CachedSample) -> Face:
    return remake_face(
        task.config,
        sample.key,
        sample.source,
        sample.source_bytes,
        sample.source_sha256,
        cached,
        task.source.encodes_itself,
    )


def _last_write(folder: str) -> float:
    """When a dataset was begun, or its quarantine table written, which every attempt to finish it does."""
    places = (storage.join(folder, name) for name in (BUILD_RECORD, manifest.QUARANTINE))
    return max(storage.modified(place) for place in places if storage.exists(place))


def clean_up_retry(task: ShardTask) -> None:
    """Remove the withdrawn record of a shard after it is committed again."""
    record = storage.join(task.dataset_root, WITHDRAWN, f"{task.index:06d}.json")
    storage.remove_file(record, within=task.dataset_root)
