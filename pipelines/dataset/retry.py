"""Try again what was quarantined, and only that: for photos that could not be read or decoded for a reason
that has passed.

The records of the shards that hold such photos are withdrawn, so that the same command makes these shards
again; what is good in them is taken out of their tars, and its photos are not read.
"""

from typing import Final

from diffbfr.errors import UsageError
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.reuse import reuse
from pipelines.dataset.samples import Face, remake_face
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, ShardTask

WITHDRAWN: Final = "withdrawn"


def find_begun(place: str) -> str | None:
    """Return a dataset's folder: the place itself, or under a root the one that was worked at last,
    finished or not; None without one.
    """
    if storage.exists(storage.join(place, BUILD_RECORD)):
        return storage.absolute(place)
    shards = storage.join(storage.absolute(place), "artifacts", "shard")
    begun = [
        folder
        for name in storage.list_dir(shards)
        if storage.exists(storage.join(folder := storage.join(shards, name), BUILD_RECORD))
    ]
    return max(begun, key=_worked_at, default=None)


def begin_retry(dataset_root: str) -> tuple[int, int]:
    """Withdraw what holds quarantined photos; returns how many photos of how many shards the same command
    will try again.

    A dataset with appended columns is refused: a model has learnt from it.
    """
    root = storage.absolute(dataset_root)
    if storage.exists(storage.join(root, manifest.DATASET_RECORD)):
        appended = [column.column for column in manifest.read_columns(root) if column.model_digest]
        if appended:
            raise UsageError(
                f"{root} has the column {appended[0]} of a model that learnt from it; shard the photos under "
                "another --root"
            )
    photos = shards = 0
    for name in storage.list_dir(storage.join(root, COMMITS)):
        commit = commits.read(root, COMMITS, int(name.removesuffix(".json")))
        if commit is not None and commit.quarantined:
            storage.remove_tree(
                storage.join(root, manifest.DATASET_RECORD)
            )  # first: a dataset that is being made anew is not finished
            record = storage.join(root, COMMITS, name)
            write_checksummed_json(
                storage.join(root, WITHDRAWN, name), read_checksummed_json(record), indent=None
            )
            storage.remove_tree(record)
            photos, shards = photos + len(commit.quarantined), shards + 1
    return photos, shards


def restore_unchanged(task: ShardTask) -> dict[str, Face]:
    """Return by key what is good in a withdrawn shard, if it was made of the same photos in the same way."""
    commit = commits.read(task.dataset_root, WITHDRAWN, task.index)
    if commit is None or commit.task != task.digest:
        return {}
    faces = {}
    for sample in commit.samples:
        kept = reuse(task.dataset_root, commit, sample, task.config, task.config)
        if kept is not None:
            faces[sample.key] = remake_face(
                task.config, sample.key, sample.source, sample.source_bytes, sample.source_sha256, kept
            )
    return faces


def _worked_at(folder: str) -> float:
    """When a dataset was begun, or its quarantine table written, which is what every attempt to finish it
    does.
    """
    places = (storage.join(folder, name) for name in (BUILD_RECORD, manifest.QUARANTINE))
    return max(storage.modified(place) for place in places if storage.exists(place))


def clean_up_retry(task: ShardTask) -> None:
    """Remove the withdrawn record of a shard that is committed again."""
    storage.remove_tree(storage.join(task.dataset_root, WITHDRAWN, f"{task.index:06d}.json"))
