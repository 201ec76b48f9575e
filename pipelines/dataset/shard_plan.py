"""Plan of a dataset: the key of each photo, and the photos of each shard.

The listing is written to a SQLite file, sorted there and split into tasks, so that memory does not grow with
the number of photos. The plan of each shard is a file in the dataset.
"""

import hashlib
import json
import posixpath
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from diffbfr.errors import UsageError
from diffbfr.images import CODECS
from diffbfr.spec import from_dict, to_dict
from pipelines import storage
from pipelines.dataset import manifest
from pipelines.dataset.commits import CommitConflictError
from pipelines.dataset.detector_copy import store_detector
from pipelines.dataset.samples import FORMAT, ShardConfig
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json
from pipelines.execution.artifact_store import flatten
from pipelines.execution.fingerprint import code_fingerprint
from pipelines.sources import PhotoRef, PhotoSource
from pipelines.sources.listing_db import open_listing_db

PLAN: Final = "plan"
COMMITS: Final = "commits"
BUILD_RECORD: Final = "build.json"
"""How a dataset is built; written before its first shard, while `dataset.json` is written last."""

_TOOLS: Final = ("numpy", "pillow", "opencv-python-headless", "pyarrow")
_SAMPLES: Final = "pipelines.dataset.samples"
_ALIGNED: Final = "pipelines.dataset.aligned_photos"
_DECIDING: Final = ("diffbfr.degradation", "diffbfr.images", _SAMPLES)
"""Modules that determine the content of a sample, the only ones of `samples`' imports that are recorded."""
_STEM_CHARACTERS: Final = 40


@dataclass(frozen=True)
class ShardTask:
    """One shard to make; its photos are listed in the dataset's plan.

    `digest` covers all that the shard's bytes depend on, but not where they are written. `reuse_from` are the
    folders of other datasets whose samples may be reused; they change no byte. `detector` names the weights
    of the face detector in the dataset, where `config.align` asks for one.
    """

    index: int
    num_photos: int
    digest: str
    source: PhotoSource
    dataset_root: str
    config: ShardConfig
    reuse_from: tuple[str, ...] = ()
    detector: str = ""

    def photos(self) -> list[tuple[str, PhotoRef]]:
        """The keys and photos of this shard, sorted by key; UsageError if the plan is of another listing."""
        uri = _plan_path(self.dataset_root, self.index)
        plan = read_checksummed_json(uri)
        if plan["task"] != self.digest:
            raise UsageError(
                f"{uri} was planned for other photos or settings; expected those of this run; run the "
                "command again"
            )
        return [(key, PhotoRef(*ref)) for key, *ref in plan["photos"]]


def plan_shards(
    source: PhotoSource,
    config: ShardConfig,
    dataset_root: str,
    reuse_from: Sequence[str] = (),
    detector: Path | None = None,
) -> list[ShardTask]:
    """List the photos, assign their keys, and split the sorted keys into tasks of `shard_size` photos.

    No photo is read. The weights of a `detector` are copied into the dataset, where every worker finds them.
    `CommitConflictError` if the dataset was begun with another configuration or other code.
    """
    root = storage.absolute(dataset_root)
    _begin(root, config)
    weights = store_detector(root, config, detector)
    tasks = []
    for index, photos in enumerate(split_listing(source.refs(), config.shard_size)):
        digest = shard_digest(config, index, photos)
        task = ShardTask(index, len(photos), digest, source, root, config, tuple(reuse_from), weights)
        _write_plan(task, photos)
        tasks.append(task)
    return tasks


def describe_build(config: ShardConfig) -> dict[str, Any]:
    """How a dataset is built, for resuming, reuse and verification: format, recipe, codecs, code, tools."""
    tools = (
        *_TOOLS,
        *(("albumentations",) if config.degradation.before else ()),
        *(("torch",) if config.align else ()),
    )
    recipe = to_dict(replace(config, degradation=config.spec))
    # the effort of an encoder changes bytes, so it belongs to the record
    codecs = {codec: dict(effort) for codec, effort in CODECS.items()}
    entries = (_SAMPLES, _ALIGNED) if config.align else (_SAMPLES,)
    deciding = (*_DECIDING, _ALIGNED, "diffbfr.faces") if config.align else _DECIDING
    code = {
        module: digest for module, digest in code_fingerprint(entries).items() if module.startswith(deciding)
    }
    return {
        "format": FORMAT,
        "recipe": recipe,
        "codecs": codecs,
        "code": code,
        "tools": {tool: version(tool) for tool in tools},
    }


def shard_digest(config: ShardConfig, index: int, photos: Sequence[tuple[str, PhotoRef]]) -> str:
    """Digest of everything that a shard's bytes depend on."""
    # the fingerprint is part of the digest: a changed photo makes its shard again
    listed = [(key, ref.name, ref.bytes, ref.fingerprint, ref.file_md5, ref.pixel_md5) for key, ref in photos]
    parts = [
        config.recipe_digest,
        config.variants,
        config.val_fraction,
        config.test_fraction,
        config.hq_codec,
        index,
        listed,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def split_listing(refs: Iterator[PhotoRef], shard_size: int) -> Iterator[list[tuple[str, PhotoRef]]]:
    """Yield the photos with their keys, sorted by key, `shard_size` at a time.

    A key consists of [a-z0-9_-]: it is the stem of the photo's file (`00000` for FFHQ's `00000/00000.png`).
    Stems that are equal after lower-casing and cleaning all get a hash of their whole name, so that a key
    does not depend on the order of the listing; the hash is lengthened until they differ.
    """
    with open_listing_db() as db:
        db.execute("CREATE TABLE photo (stem TEXT, name TEXT, ref TEXT, key TEXT)")
        rows = ((_clean(_stem(ref.name)), ref.name, json.dumps(astuple(ref))) for ref in refs)
        db.executemany("INSERT INTO photo (stem, name, ref) VALUES (?, ?, ?)", rows)
        _assign_keys(db)
        ordered = db.execute("SELECT key, ref FROM photo ORDER BY key")
        while chunk := ordered.fetchmany(shard_size):
            yield [(key, PhotoRef(*json.loads(ref))) for key, ref in chunk]


def _begin(root: str, config: ShardConfig) -> None:
    """Write the build record; CommitConflictError if the dataset was begun with a different one."""
    uri = storage.join(root, BUILD_RECORD)
    now = describe_build(config)
    if write_checksummed_json(uri, now, create_only=True, within=root):
        return
    begun = flatten(read_checksummed_json(uri))
    wanted = flatten(now)
    # one changed field is named, instead of two whole records
    changed = next((path for path in sorted({*begun, *wanted}) if begun.get(path) != wanted.get(path)), None)
    if changed is not None:
        found, expected = begun.get(changed), wanted.get(changed)
        raise CommitConflictError(
            f"{root} was made from other inputs ({changed} {found}, expected {expected}); remove that "
            "dataset, or use another root"
        )


def _assign_keys(db: sqlite3.Connection) -> None:
    """Assign the key of each row; UsageError if a name is listed twice."""
    # equal stems are found by an index in SQLite, since the listing need not fit into memory
    db.create_function("hashed", 3, _hashed_key, deterministic=True)
    db.execute("CREATE INDEX by_stem ON photo (stem)")
    db.execute("UPDATE photo SET key = stem")
    ambiguous = "stem = '' OR stem IN (SELECT stem FROM photo GROUP BY stem HAVING count(*) > 1)"
    db.execute("CREATE INDEX by_key ON photo (key)")
    for digits in (8, 16, 32):
        db.execute(f"UPDATE photo SET key = hashed(stem, name, ?) WHERE {ambiguous}", (digits,))
        clash = db.execute(
            "SELECT name, count(*) FROM photo GROUP BY key HAVING count(*) > 1 LIMIT 1"
        ).fetchone()
        if clash is None:
            return
    name, uses = clash
    raise UsageError(f"the listing names {name!r} {uses} times; expected each photo once; check the source")


def _hashed_key(stem: str, name: str, digits: int) -> str:
    return f"{stem or 'photo'}-{hashlib.sha256(name.encode()).hexdigest()[:digits]}"


def _stem(name: str) -> str:
    return posixpath.splitext(name.replace("\\", "/").rpartition("/")[2])[0]


def _clean(stem: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-")[:_STEM_CHARACTERS]


def _write_plan(task: ShardTask, photos: Sequence[tuple[str, PhotoRef]]) -> None:
    """Write the plan of one shard unless the same plan exists."""
    uri = _plan_path(task.dataset_root, task.index)
    plan = {"task": task.digest, "photos": [[key, *astuple(ref)] for key, ref in photos]}
    try:
        if read_checksummed_json(uri) == plan:
            return
    except FileNotFoundError:
        pass
    write_checksummed_json(uri, plan, indent=None, within=task.dataset_root)


def _plan_path(root: str, index: int) -> str:
    return storage.join(root, PLAN, f"{index:06d}.json")


def read_config(dataset_root: str) -> ShardConfig:
    """The configuration of a finished dataset, from its `dataset.json`."""
    return from_dict(
        ShardConfig,
        dict(manifest.read_record(dataset_root).recipe),
        f"the recipe in {manifest.DATASET_RECORD}",
    )
