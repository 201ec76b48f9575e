"""Commit records: what makes a shard of a column visible; one small create-only JSON each, written after its tars.

A shard counts as done when its record is there and every tar that it names has its size. Two attempts at the same shard write the same
bytes, so it does not matter who is first; a record of other inputs or other bytes is an error, never overwritten.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffbfr.degradation import DegradationParams
from diffbfr.errors import DiffBFRError, UsageError
from diffbfr.shards import BuiltTar, Member, Sample, build_tar
from diffbfr.shards.schema import row_fields
from pipelines import storage
from pipelines.sealed import read_sealed, write_sealed


class CommitConflictError(DiffBFRError):
    """A committed shard and a new attempt at it differ; the committed one stays."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused input: `source_sha256` is "" if its bytes could not be had; `reason` is a stable code."""

    source: str
    source_bytes: int
    source_sha256: str
    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class TarRecord:
    """One published tar, relative to the dataset, with the index of its members."""

    tar: str
    num_bytes: int
    sha256: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Commit:
    """What one shard holds. `task` is the digest of everything that it is a function of."""

    index: int
    task: str
    samples: tuple[Sample, ...]
    tars: tuple[TarRecord, ...]
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True, eq=False)
class Draft:
    """One tar of a shard, built and checked in memory, not yet published."""

    record: TarRecord
    built: BuiltTar


def draft_tar(column: str, index: int, files: Iterable[tuple[str, str, bytes]]) -> Draft:
    """Build the tar of shard `index` of a column from (key, name, content)."""
    tar = f"{column}/{index:06d}.tar"
    named = list(files)
    built = build_tar((f"{key}.{name}", content) for key, name, content in named)
    members = tuple(
        Member(key, name, column, tar, member.offset, member.length, member.sha256)
        for (key, name, _), member in zip(named, built.members, strict=True)
    )
    return Draft(TarRecord(tar, len(built.data), built.sha256, members), built)


def publish(root: str, folder: str, commit: Commit, drafts: Sequence[Draft]) -> Commit:
    """Write a shard's tars, each whole and read back, and then its record in `folder`; return the record that stands.

    What is already committed is compared first, so that a differing attempt cannot replace a good tar.
    """
    _refuse_conflict(root, folder, commit)
    for draft in drafts:
        storage.write_atomic(storage.join(root, draft.record.tar), draft.built.data)
    record = json.loads(json.dumps(commit, default=row_fields))
    if not write_sealed(_record(root, folder, commit.index), record, create_only=True, indent=None):
        _refuse_conflict(root, folder, commit)
    return commit


def find(root: str, folder: str, index: int, task: str) -> Commit | None:
    """Return the valid commit of a shard: None without a record, or if a tar is missing or cut; `CommitConflictError` if another task's."""
    commit = read(root, folder, index)
    if commit is None:
        return None
    if commit.task != task:
        raise CommitConflictError(
            f"{_record(root, folder, index)} was made from other inputs ({commit.task[:12]}, expected {task[:12]}); "
            "remove that dataset, or use another root"
        )
    return commit if all(_is_whole(root, record) for record in commit.tars) else None


def read(root: str, folder: str, index: int) -> Commit | None:
    """Read one commit record; None if there is none, `ShardDamagedError` if it is not as it was written."""
    uri = _record(root, folder, index)
    try:
        return _decode(read_sealed(uri))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{uri} is no commit record of this version ({error!r}); expected what a shard writes; remove the dataset and run again"
        ) from error


def _record(root: str, folder: str, index: int) -> str:
    return storage.join(root, folder, f"{index:06d}.json")


def _is_whole(root: str, record: TarRecord) -> bool:
    try:
        return storage.size(storage.join(root, record.tar)) == record.num_bytes
    except FileNotFoundError:
        return False


def _refuse_conflict(root: str, folder: str, commit: Commit) -> None:
    standing = read(root, folder, commit.index)
    if standing is not None and standing != commit:
        raise CommitConflictError(
            f"{_record(root, folder, commit.index)} is committed with other content than this attempt made; "
            "expected the same bytes; check that every worker runs the same versions, then remove the dataset and run again"
        )


def _decode(value: Any) -> Commit:
    return Commit(
        index=value["index"],
        task=value["task"],
        samples=tuple(
            Sample(**{**row, "variants": tuple(DegradationParams(**params) for params in row["variants"])}) for row in value["samples"]
        ),
        tars=tuple(TarRecord(**{**row, "members": tuple(Member(**member) for member in row["members"])}) for row in value["tars"]),
        quarantined=tuple(Quarantined(**row) for row in value["quarantined"]),
    )
