"""Commit records: what makes a shard of a column visible; one small create-only JSON each, written after its
tars.

A shard counts as done when its record is there and every tar that it names has its size. Two attempts at the
same shard write the same bytes, so it does not matter who is first; a record of other inputs or other bytes
is an error, never overwritten, and neither are its tars.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffbfr.degradation import DegradationParams
from diffbfr.errors import UsageError
from diffbfr.shards import Member, Sample
from diffbfr.shards.schema import row_fields
from diffbfr.shards.tar import BuiltTar, TarBuilder
from pipelines import storage
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json


class CommitConflictError(UsageError):
    """A committed shard and a new attempt at it differ; the committed one stays, and trying again would
    not help.
    """


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
class TarInfo:
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
    tars: tuple[TarInfo, ...]
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True, eq=False)
class StagedFiles:
    """One tar of a shard, built and checked in memory, not yet published."""

    record: TarInfo
    built: BuiltTar


class StagedTar:
    """The tar of shard `index` of a column, growing in memory member by member."""

    def __init__(self, column: str, index: int) -> None:
        self._column, self._tar = column, f"{column}/{index:06d}.tar"
        self._named: list[tuple[str, str]] = []
        self._builder = TarBuilder()

    def add(self, key: str, name: str, content: bytes) -> None:
        """Append a file of a sample."""
        self._builder.add(f"{key}.{name}", content)
        self._named.append((key, name))

    def finish(self) -> StagedFiles:
        """Check the tar and index it."""
        built = self._builder.build()
        members = tuple(
            Member(key, name, self._column, self._tar, member.offset, member.length, member.sha256)
            for (key, name), member in zip(self._named, built.members, strict=True)
        )
        return StagedFiles(TarInfo(self._tar, len(built.data), built.sha256, members), built)


def publish(root: str, folder: str, commit: Commit, drafts: Sequence[StagedFiles]) -> Commit:
    """Write a shard's tars, each whole and read back, and then its record in `folder`; return the record that
    stands.

    What is already committed is compared before each tar, so that a differing attempt cannot replace a good
    one. Where another attempt commits in that very moment, what was written over it is removed again: a shard
    that lacks a tar is made anew, a wrong one might not be.
    """
    written: dict[str, str] = {}
    try:
        standing = _write(root, folder, commit, drafts, written)
    except CommitConflictError:
        _remove_orphans(root, read(root, folder, commit.index), written)
        raise
    if standing != commit:
        _remove_orphans(root, standing, written)
        return standing
    for draft in drafts:
        uri = storage.join(root, draft.record.tar)
        if (
            storage.version(uri) != written[uri] and storage.digest(uri) != draft.record.sha256
        ):  # by an attempt that came too late
            storage.write_atomic(uri, draft.built.data)
    return commit


def find(root: str, folder: str, index: int, task: str) -> Commit | None:
    """Return the valid commit of a shard: None without a record, or if a tar is missing or cut;
    `CommitConflictError` if another task's.
    """
    commit = read(root, folder, index)
    if commit is None:
        return None
    if commit.task != task:
        raise CommitConflictError(
            f"{_record(root, folder, index)} was made from other inputs ({commit.task[:12]}, expected "
            f"{task[:12]}); "
            "remove that dataset, or use another root"
        )
    return commit if all(_is_whole(root, record) for record in commit.tars) else None


def read(root: str, folder: str, index: int) -> Commit | None:
    """Read one commit record; None if there is none, `ShardDamagedError` if it is not as it was written."""
    uri = _record(root, folder, index)
    try:
        return _decode(read_checksummed_json(uri))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{uri} is no commit record of this version ({error!r}); expected what a shard writes; remove "
            "the dataset and run again"
        ) from error


def _record(root: str, folder: str, index: int) -> str:
    return storage.join(root, folder, f"{index:06d}.json")


def _is_whole(root: str, record: TarInfo) -> bool:
    try:
        return storage.size(storage.join(root, record.tar)) == record.num_bytes
    except FileNotFoundError:
        return False


def _write(
    root: str, folder: str, commit: Commit, drafts: Sequence[StagedFiles], written: dict[str, str]
) -> Commit:
    """Write tars, noting the version of each, and the record; stop at a record of another attempt, and
    return the one that stands.
    """
    for draft in drafts:
        standing = _existing(root, folder, commit)
        if standing is not None and standing != commit:
            return standing
        uri = storage.join(root, draft.record.tar)
        storage.write_atomic(uri, draft.built.data)
        written[uri] = storage.version(uri)
    record = json.loads(json.dumps(commit, default=row_fields))
    if write_checksummed_json(_record(root, folder, commit.index), record, create_only=True, indent=None):
        return commit
    return _existing(root, folder, commit) or commit


def _existing(root: str, folder: str, commit: Commit) -> Commit | None:
    """Return the record that is there; `CommitConflictError` if it contradicts this attempt.

    A photo may time out for one of two attempts and not for the other: they agree if they made the same of
    every sample that both have.
    """
    standing = read(root, folder, commit.index)
    if standing is None or standing == commit:
        return standing
    there, made = _contents(standing), _contents(commit)
    if standing.task != commit.task or any(there[key] != made[key] for key in there.keys() & made.keys()):
        raise CommitConflictError(
            f"{_record(root, folder, commit.index)} is committed with other content than this attempt made; "
            "expected the same bytes; check that every worker runs the same versions, then remove the "
            "dataset and run again"
        )
    return standing


def _contents(commit: Commit) -> dict[str, list[tuple[str, str, str]]]:
    """The digest of every file of each sample, by its key; the low-quality column's description is the
    sample's row.
    """
    contents: dict[str, list[tuple[str, str, str]]] = {}
    for member in (member for tar in commit.tars for member in tar.members):
        contents.setdefault(member.key, []).append((member.column, member.name, member.sha256))
    return contents


def _remove_orphans(root: str, standing: Commit | None, written: Iterable[str]) -> None:
    """Remove those of the tars just written that are not what the standing record says."""
    sums = {storage.join(root, tar.tar): tar.sha256 for tar in standing.tars} if standing is not None else {}
    for uri in written:
        if uri in sums and storage.exists(uri) and storage.digest(uri) != sums[uri]:
            storage.remove_tree(uri)


def _decode(value: Any) -> Commit:
    return Commit(
        index=value["index"],
        task=value["task"],
        samples=tuple(
            Sample(**{**row, "variants": tuple(DegradationParams(**params) for params in row["variants"])})
            for row in value["samples"]
        ),
        tars=tuple(
            TarInfo(**{**row, "members": tuple(Member(**member) for member in row["members"])})
            for row in value["tars"]
        ),
        quarantined=tuple(Quarantined(**row) for row in value["quarantined"]),
    )
