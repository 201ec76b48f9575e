"""Commit records: one small create-only JSON for each shard, written after its tars, that makes it visible.

A shard is done when its record exists and every tar that it names has the recorded size. Two attempts at the
same shard write the same bytes, so either may commit first. A record of other inputs or other bytes is an
error; neither it nor its tars are overwritten.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diffbfr.degradation import DegradationParams
from diffbfr.errors import UsageError
from diffbfr.shards import FaceFrame, Member, Sample, ShardDamagedError
from diffbfr.shards.schema import row_fields
from diffbfr.shards.tar import BuiltTar, TarBuilder
from pipelines import storage
from pipelines.dataset.record_checks import check_member, check_tar
from pipelines.dataset.sealed_json import read_checksummed_json, write_checksummed_json


class CommitConflictError(UsageError):
    """A new attempt at a committed shard has other content; the committed one is kept, a retry is useless."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused input: `source_sha256` is "" if it could not be read; `reason` is a stable code."""

    source: str
    source_bytes: int
    source_sha256: str
    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class TarInfo:
    """One published tar, its path relative to the dataset, with the index of its members."""

    tar: str
    num_bytes: int
    sha256: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Commit:
    """The content of one shard. `task` is the digest of everything that the content depends on."""

    index: int
    task: str
    samples: tuple[Sample, ...]
    tars: tuple[TarInfo, ...]
    quarantined: tuple[Quarantined, ...]

    @property
    def num_used(self) -> int:
        """Photos with a sample; a photo can have several."""
        return len({sample.source for sample in self.samples})


@dataclass(frozen=True, eq=False)
class StagedFiles:
    """One tar of a shard, built and checked in memory, not yet published."""

    info: TarInfo
    built: BuiltTar


class StagedTar:
    """The tar of shard `index` of a column, built in memory member by member."""

    def __init__(self, column: str, index: int) -> None:
        self._column = column
        self._tar = f"{column}/{index:06d}.tar"
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


def publish(root: str, folder: str, commit: Commit, staged: Sequence[StagedFiles]) -> Commit:
    """Write a shard's tars atomically, then its record in `folder`; return the record that is in effect.

    An existing record is compared before each tar is written, so that a differing attempt cannot replace a
    good tar. If another attempt commits between that check and the write, the tar written over its own is
    removed again: a shard that lacks a tar is made again, while a wrong tar might stay unnoticed.
    """
    written: dict[str, str] = {}
    try:
        effective = _write(root, folder, commit, staged, written)
    except CommitConflictError:
        _remove_orphans(root, read(root, folder, commit.index), written)
        raise
    if effective != commit:
        _remove_orphans(root, effective, written)
        return effective
    for tar in staged:
        uri = storage.join(root, tar.info.tar)
        # a late attempt may have replaced the tar after this one wrote it
        if storage.version(uri) != written[uri] and storage.digest(uri) != tar.info.sha256:
            storage.write_atomic(uri, tar.built.data, within=root)
    return commit


def find(root: str, folder: str, index: int, task: str) -> Commit | None:
    """The valid commit of a shard; None without a record, or if a tar is missing or truncated.

    `CommitConflictError` if the record belongs to another task.
    """
    commit = read(root, folder, index)
    if commit is None:
        return None
    if commit.task != task:
        raise CommitConflictError(
            f"{_record(root, folder, index)} was made from other inputs ({commit.task[:12]}, expected "
            f"{task[:12]}); remove that dataset, or use another root"
        )
    return commit if all(_is_whole(root, record) for record in commit.tars) else None


def read(root: str, folder: str, index: int) -> Commit | None:
    """Read one commit record; None if there is none, `ShardDamagedError` if its checksum does not match."""
    uri = _record(root, folder, index)
    try:
        return _checked(_decode(read_checksummed_json(uri)), index)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError) as error:
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
    root: str, folder: str, commit: Commit, staged: Sequence[StagedFiles], written: dict[str, str]
) -> Commit:
    """Write the tars and the record; return the record in effect.

    The version of each tar is noted in `written`. A record of another attempt ends the writing.
    """
    for tar in staged:
        existing = _existing(root, folder, commit)
        if existing is not None and existing != commit:
            return existing
        uri = storage.join(root, tar.info.tar)
        storage.write_atomic(uri, tar.built.data, within=root)
        written[uri] = storage.version(uri)
    # the checksum is of plain JSON, so dataclasses and tuples are converted first
    record = json.loads(json.dumps(commit, default=row_fields))
    place = _record(root, folder, commit.index)
    if write_checksummed_json(place, record, create_only=True, indent=None, within=root):
        return commit
    return _existing(root, folder, commit) or commit


def _existing(root: str, folder: str, commit: Commit) -> Commit | None:
    """The existing record of a shard, if there is one; `CommitConflictError` if it contradicts this attempt.

    A photo may time out in one of two attempts and not in the other. So two attempts agree if the samples
    that both hold are equal.
    """
    existing = read(root, folder, commit.index)
    if existing is None or existing == commit:
        return existing
    there = _contents(existing)
    made = _contents(commit)
    if existing.task != commit.task or any(there[key] != made[key] for key in there.keys() & made.keys()):
        raise CommitConflictError(
            f"{_record(root, folder, commit.index)} is committed with other content than this attempt made; "
            "expected the same bytes; check that every worker runs the same versions, then remove the "
            "dataset and run again"
        )
    return existing


def _contents(commit: Commit) -> dict[str, list[tuple[str, str, str]]]:
    """Column, name and digest of every file of each sample, by key.

    The row of a sample is one of its files, the description in the low-quality column.
    """
    contents: dict[str, list[tuple[str, str, str]]] = {}
    for tar in commit.tars:
        for member in tar.members:
            contents.setdefault(member.key, []).append((member.column, member.name, member.sha256))
    return contents


def _remove_orphans(root: str, existing: Commit | None, written: Iterable[str]) -> None:
    """Remove those of the tars just written that contradict the existing record."""
    sums = {storage.join(root, tar.tar): tar.sha256 for tar in existing.tars} if existing is not None else {}
    # a tar of an unknown shard is left: the record that comes next decides about it
    for uri in written:
        if uri in sums and storage.exists(uri) and storage.digest(uri) != sums[uri]:
            storage.remove_file(uri, within=root)


def _checked(commit: Commit, index: int) -> Commit:
    """The commit; `ShardDamagedError` if it is of another shard, or names what cannot be in it."""
    if commit.index != index:
        raise ShardDamagedError(f"the record of shard {index} says that it is of shard {commit.index}")
    for tar in commit.tars:
        check_tar(tar.tar, tar.num_bytes, tar.sha256, index)
        for member in tar.members:
            check_member(member, tar.tar, tar.num_bytes)
    return commit


def _decode(value: Any) -> Commit:
    return Commit(
        index=value["index"],
        task=value["task"],
        samples=tuple(_decode_sample(row) for row in value["samples"]),
        tars=tuple(_decode_tar(row) for row in value["tars"]),
        quarantined=tuple(Quarantined(**row) for row in value["quarantined"]),
    )


def _decode_sample(row: dict[str, Any]) -> Sample:
    variants = tuple(DegradationParams(**params) for params in row["variants"])
    face = row.get("face")
    frame = None if face is None else FaceFrame(**{**face, "quad": tuple(face["quad"])})
    return Sample(**{**row, "variants": variants, "face": frame})


def _decode_tar(row: dict[str, Any]) -> TarInfo:
    return TarInfo(**{**row, "members": tuple(Member(**member) for member in row["members"])})
