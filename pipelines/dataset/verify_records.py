"""Level 0 of the verification of a dataset: its records and tables, compared with one another.

The counts and identities are computed again from the shards' records, and the rows of every table are
compared with them, so that a record that was changed and given a fitting checksum contradicts another one.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.shards import ColumnInfo, Member, Sample, ShardDamagedError
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.columns import member_of, read_quarantined
from pipelines.dataset.commits import Commit, Quarantined
from pipelines.dataset.identity import archive_line, visible_content
from pipelines.dataset.manifest import DatasetRecord
from pipelines.dataset.sealed_json import read_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, PLAN


@dataclass(frozen=True)
class DatasetProblem:
    """A part of a dataset that differs from its commit: its path relative to the dataset, and a message."""

    path: str
    message: str


def verify_records(dataset_root: str) -> list[DatasetProblem]:
    """Level 0 for the whole dataset: the tables' digests, and the counts and identities, computed again."""
    root = storage.absolute(dataset_root)
    record = manifest.read_record(root)
    return [
        *_check_plans(root),
        *_check_tables(root, record),
        *_check_sums(root, record),
        *_check_quarantined(root, record),
    ]


def check_number_of_shards(root: str, record: DatasetRecord) -> None:
    """`ShardDamagedError` if most of the shards' records are missing: a check of each shard is planned."""
    there = len(storage.list_dir(storage.join(root, COMMITS)))
    if record.info.num_shards > 2 * there:
        raise ShardDamagedError(
            f"{root} holds the records of {there} shards, {manifest.DATASET_RECORD} says "
            f"{record.info.num_shards}; expected one each; run the shard step again"
        )


def records_of(root: str, columns: Sequence[ColumnInfo], index: int) -> list[Commit]:
    folders = [COMMITS, *(f"{column.column}/{COMMITS}" for column in columns if column.model_digest)]
    records = []
    for folder in folders:
        commit = commits.read(root, folder, index)
        if commit is None:
            raise DiffBFRError(
                f"{folder}/{index:06d}.json is missing; expected a record for each shard; run the same "
                "command again"
            )
        records.append(commit)
    return records


def _check_plans(root: str) -> Iterator[DatasetProblem]:
    """Check the build record and the shards' plans, which the next run of the shard step reads."""
    for path in (BUILD_RECORD, *(f"{PLAN}/{name}" for name in storage.list_dir(storage.join(root, PLAN)))):
        try:
            read_checksummed_json(storage.join(root, *path.split("/")))
        except FileNotFoundError:
            continue
        except DiffBFRError as error:
            yield DatasetProblem(path, str(error))


def _check_tables(root: str, record: DatasetRecord) -> Iterator[DatasetProblem]:
    for path, sha256 in sorted(record.tables.items()):
        try:
            found = storage.digest(storage.join(root, path))
        except FileNotFoundError:
            found = "nothing"
        except OSError as error:
            found = error.strerror or one_line(error)
        if found != sha256:
            yield DatasetProblem(
                path, f"the table has digest {found[:12]}; expected {sha256[:12]}; run the shard step again"
            )


def _check_sums(root: str, record: DatasetRecord) -> Iterator[DatasetProblem]:
    """Compute counts and identities from the shards' records and compare them with `dataset.json`.

    The rows of the tables are compared with the records too.
    """
    info = record.info
    content, archive, splits = hashlib.sha256(), hashlib.sha256(), Counter[str]()
    samples = _Table(root, manifest.SAMPLES, Sample, record)
    quarantined = _Table(root, manifest.QUARANTINE, Quarantined, record)
    members = {
        column.column: _Table(root, manifest.members_path(column.column), Member, record)
        for column in record.columns
    }
    for index in range(info.num_shards):
        try:
            commit = commits.read(root, COMMITS, index)
            tars = list(chain.from_iterable(each.tars for each in records_of(root, record.columns, index)))
        except DiffBFRError:
            commit = None
        if commit is None:
            return  # verify_shard reports the record; without it no count can be right
        for tar in tars:
            column = tar.tar.partition("/")[0]
            if column not in members:
                yield DatasetProblem(tar.tar, "its column is not one of the dataset; make the dataset again")
            else:
                members[column].compare(tar.members)
        content.update(visible_content(commit))
        for tar in commit.tars:
            archive.update(archive_line(tar))
        splits.update(sample.split for sample in commit.samples)
        samples.compare(commit.samples)
        quarantined.compare(commit.quarantined)
    figures = {
        "num_samples": (samples.num_rows, info.num_samples),
        "num_train": (splits["train"], info.num_train),
        "num_val": (splits["val"], info.num_val),
        "num_test": (splits["test"], info.num_test),
        "num_quarantined": (quarantined.num_rows, info.num_quarantined),
        "content_id": (content.hexdigest(), info.content_id),
        "archive_id": (archive.hexdigest(), info.archive_id),
    }
    for name, (found, recorded) in figures.items():
        if found != recorded:
            yield DatasetProblem(
                manifest.DATASET_RECORD,
                f"{name} is {recorded}, the shards' records come to {found}; run the shard step again",
            )
    for table in (samples, quarantined, *members.values()):
        yield from table.problems()


class _Table:
    """A table whose rows are compared with the shards' records, in order.

    A table with a wrong digest is not compared, because `_check_tables` reports it.
    """

    def __init__(self, root: str, path: str, row_type: type[Any], record: DatasetRecord) -> None:
        self.num_rows = 0
        self._path = path
        self._differs = False
        self._damaged = False
        self._rows = manifest.stream_rows(
            storage.join(root, path), row_type, record.tables.get(path, "absent")
        )

    def compare(self, committed: Sequence[Any]) -> None:
        """Compare the next rows with those of a shard."""
        self.num_rows += len(committed)
        self._differs |= self._next_rows(len(committed)) != list(committed)

    def problems(self) -> Iterator[DatasetProblem]:
        """A problem if the rows differ from those of the shards, or if there are more of them."""
        more = self._next_rows(1)
        if (self._differs or more) and not self._damaged:
            yield DatasetProblem(
                self._path, "the rows are not those of the shards' records; run the shard step again"
            )

    def _next_rows(self, number: int) -> list[Any]:
        try:
            return list(islice(self._rows, number))
        except (DiffBFRError, OSError):
            self._damaged = True
            return []


def _check_quarantined(root: str, record: DatasetRecord) -> Iterator[DatasetProblem]:
    """Compare the degenerate images that an appended column's record names with its shards' records."""
    for column in record.columns:
        if not column.model_digest:
            continue
        try:
            rows = read_quarantined(root, column.column, record.info.num_shards)
        except DiffBFRError:
            continue  # verify_shard reports the record
        if tuple(map(member_of, rows)) != column.quarantined:
            found = f"{len(column.quarantined)} images are quarantined, by the shards' records {len(rows)}"
            yield DatasetProblem(
                f"{column.column}/{manifest.COLUMN_RECORD}", f"{found}; run `diffbfr condition irm1` again"
            )
