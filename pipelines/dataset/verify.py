"""Verification of a dataset against its commits, in five levels; each level includes those below it.

Level 0 checks the checksums of records and tables and recomputes the counts and identities. Level 1 checks
the size of each tar, level 2 the digest of every byte. Level 3 decodes every image and compares pixel
digests. Level 4 applies Eq. 13 again and compares every low-quality face byte by byte.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from diffbfr.degradation import degrade, draw, sample_seed
from diffbfr.errors import DiffBFRError, one_line
from diffbfr.images import Pixels, pixel_digest, resize
from diffbfr.shards import ColumnInfo, Member, Sample, ShardDamagedError
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields
from diffbfr.shards.tar import TarBuilder
from pipelines import storage
from pipelines.dataset import commits, manifest
from pipelines.dataset.columns import member_of, read_quarantined
from pipelines.dataset.commits import Commit, Quarantined, TarInfo
from pipelines.dataset.identity import archive_line, visible_content
from pipelines.dataset.manifest import DatasetRecord
from pipelines.dataset.samples import ShardConfig
from pipelines.dataset.sealed_json import read_checksummed_json
from pipelines.dataset.shard_plan import BUILD_RECORD, COMMITS, PLAN, read_config
from pipelines.sources.sandboxed_images import decode_sandboxed

LEVELS: Final = ("records", "sizes", "tar digests", "pixels", "low-quality faces")
RECORDS, SIZES, DIGESTS, PIXELS, LOW_QUALITY = range(len(LEVELS))


@dataclass(frozen=True)
class DatasetProblem:
    """A part of a dataset that differs from its commit: its path relative to the dataset, and a message."""

    path: str
    message: str


@dataclass(frozen=True)
class VerifyTask:
    """One shard of every finished column to check, as deep as `level`."""

    index: int
    dataset_root: str
    level: int
    columns: tuple[ColumnInfo, ...]
    config: ShardConfig


@dataclass(frozen=True)
class VerifyReport:
    """What was checked in one shard, and the problems found; `num_bytes` is the number of bytes read."""

    index: int
    samples: int
    low_quality_faces: int
    num_bytes: int
    problems: tuple[DatasetProblem, ...]
    seconds: float


def plan_verification(dataset_root: str, level: int) -> list[VerifyTask]:
    """One task for each shard; `ShardDamagedError` if `dataset.json` itself is damaged."""
    root = storage.absolute(dataset_root)
    record = manifest.read_record(root)
    config = read_config(root)
    _check_number_of_shards(root, record)
    return [VerifyTask(index, root, level, record.columns, config) for index in range(record.info.num_shards)]


def _check_number_of_shards(root: str, record: DatasetRecord) -> None:
    """`ShardDamagedError` unless there are as many records as shards, since a check of each is planned."""
    there = len(storage.list_dir(storage.join(root, COMMITS)))
    if record.info.num_shards > there:
        raise ShardDamagedError(
            f"{root} holds the records of {there} shards, {manifest.DATASET_RECORD} says "
            f"{record.info.num_shards}; expected one each; run the shard step again"
        )


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


def verify_shard(task: VerifyTask) -> VerifyReport:
    """Check one shard of every column; damage is reported and never raises an error."""
    started = time.monotonic()
    try:
        records = _records(task)
    except DiffBFRError as error:
        problem = DatasetProblem(f"{COMMITS}/{task.index:06d}.json", str(error))
        return VerifyReport(task.index, 0, 0, 0, (problem,), time.monotonic() - started)
    problems: list[DatasetProblem] = []
    whole: dict[str, bytes] = {}
    num_bytes = 0
    for tar in chain.from_iterable(commit.tars for commit in records) if task.level >= SIZES else ():
        found, data = _check_tar(task, tar)
        problems += found
        num_bytes += len(data)
        if not found:
            whole[tar.tar] = data
    samples = records[0].samples
    if task.level >= PIXELS:
        contents = _contents(records, whole)
        for sample in samples:
            problems += _check_sample(task, sample, contents[sample.key])
    faces = len(samples) * task.config.variants if task.level >= LOW_QUALITY else 0
    return VerifyReport(
        task.index, len(samples), faces, num_bytes, tuple(problems), time.monotonic() - started
    )


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
            tars = list(chain.from_iterable(each.tars for each in _records_of(root, record.columns, index)))
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


def _records(task: VerifyTask) -> list[Commit]:
    """The commit records of one shard: the dataset's own first, then one for each appended column.

    DiffBFRError if one is missing, or if they do not name one tar for each column.
    """
    records = _records_of(task.dataset_root, task.columns, task.index)
    tars = chain.from_iterable(record.tars for record in records)
    named = sorted(tar.tar.partition("/")[0] for tar in tars)
    expected = sorted(column.column for column in task.columns)
    if records[0].samples and named != expected:
        raise DiffBFRError(
            f"the records of shard {task.index} name tars of {', '.join(named)}; expected one of each of "
            f"{', '.join(expected)}; make the shard again"
        )
    return records


def _records_of(root: str, columns: Sequence[ColumnInfo], index: int) -> list[Commit]:
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


def _check_tar(task: VerifyTask, tar: TarInfo) -> tuple[list[DatasetProblem], bytes]:
    """Compare a tar with its record; return the problems, which name damaged members, and its bytes."""
    uri = storage.join(task.dataset_root, tar.tar)
    again = "remove it and run the same command again"
    try:
        num_bytes = storage.size(uri)
        if num_bytes != tar.num_bytes:
            message = f"the shard has {num_bytes} bytes; expected {tar.num_bytes}; {again}"
            return [DatasetProblem(tar.tar, message)], b""
        data = storage.read_bytes(uri) if task.level >= DIGESTS else b""
    except FileNotFoundError:
        message = f"the shard is missing; expected {tar.num_bytes} bytes; run the same command again"
        return [DatasetProblem(tar.tar, message)], b""
    except OSError as error:
        message = f"the shard cannot be read ({error.strerror or one_line(error)}); expected a tar; {again}"
        return [DatasetProblem(tar.tar, message)], b""
    if task.level < DIGESTS:
        return [], data
    if hashlib.sha256(data).hexdigest() == tar.sha256:
        if _rebuild(tar, data) != data:
            message = "it holds other members than its record says; make the shard again"
            return [DatasetProblem(tar.tar, message)], b""
        return [], data
    damaged = [
        f"{member.key}.{member.name}"
        for member in tar.members
        if hashlib.sha256(data[member.offset : member.offset + member.length]).hexdigest() != member.sha256
    ]
    where = "between the members"
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        where = f"in {', '.join(damaged[:3])}{more}"
    return [
        DatasetProblem(tar.tar, f"bytes differ {where}; expected sha256 {tar.sha256[:12]}; {again}")
    ], data


def _rebuild(tar: TarInfo, data: bytes) -> bytes:
    """The tar that the record describes, with the content at its places; b"" if a digest does not fit.

    A record that was forged together with its tar has the right digest of it, and may lie about its members.
    """
    builder = TarBuilder()
    for member in tar.members:
        content = data[member.offset : member.offset + member.length]
        if hashlib.sha256(content).hexdigest() != member.sha256:
            return b""
        builder.add(f"{member.key}.{member.name}", content)
    return builder.build().data


def _contents(
    records: Sequence[Commit], whole: Mapping[str, bytes]
) -> dict[str, dict[tuple[str, str], bytes]]:
    """The members of each sample by (column, name), from the undamaged tars."""
    contents: dict[str, dict[tuple[str, str], bytes]] = {sample.key: {} for sample in records[0].samples}
    for tar in chain.from_iterable(commit.tars for commit in records):
        data = whole.get(tar.tar)
        if data is None:
            continue
        for member in tar.members:
            content = data[member.offset : member.offset + member.length]
            # a forged record may name a key that no sample has
            contents.setdefault(member.key, {})[member.column, member.name] = content
    return contents


def _check_sample(
    task: VerifyTask, sample: Sample, contents: Mapping[tuple[str, str], bytes]
) -> Iterator[DatasetProblem]:
    """Compare the row in the shard and the pixel digests; at level 4 the low-quality faces too."""
    config = task.config
    pixels: dict[str, Pixels] = {}
    for (column, name), data in contents.items():
        if (column, name) == (LQ_COLUMN, LQ_RECORD):
            if data != json.dumps(sample, default=row_fields, sort_keys=True).encode():
                yield DatasetProblem(
                    f"{column}/{sample.key}.{name}",
                    "the description is not the sample's row; make the shard again",
                )
            continue
        try:
            pixels[column] = decode_sandboxed(data)
        except DiffBFRError as error:
            yield DatasetProblem(
                f"{column}/{sample.key}.{name}", f"cannot be decoded ({error}); make the shard again"
            )
    # a member that is missing was reported with its tar
    hq_column, low_column, _ = (column.column for column in config.columns)
    for column, sha256 in ((hq_column, sample.pixel_sha256), (low_column, sample.low_pixel_sha256)):
        if column in pixels and pixel_digest(pixels[column]) != sha256:
            yield DatasetProblem(
                f"{column}/{sample.key}",
                f"the pixels differ; expected digest {sha256[:12]}; make the shard again",
            )
    if task.level >= LOW_QUALITY and hq_column in pixels:
        yield from _check_degradation(task, sample, pixels[hq_column], contents)


def _check_degradation(
    task: VerifyTask, sample: Sample, hq: Pixels, contents: Mapping[tuple[str, str], bytes]
) -> Iterator[DatasetProblem]:
    """Derive every image from the ground truth again and compare it."""
    config = task.config
    low_column = config.columns[1].column
    if pixel_digest(resize(hq, config.lq_px, "bicubic")) != sample.low_pixel_sha256:
        yield DatasetProblem(
            f"{low_column}/{sample.key}",
            "is not the ground truth made small on this machine; compare the versions of the tools",
        )
    for variant, params in enumerate(sample.variants):
        path = f"{LQ_COLUMN}/{sample.key}.{variant}.jpg"
        if draw(config.spec, sample_seed(config.recipe_digest, sample.source_sha256, variant)) != params:
            yield DatasetProblem(
                path,
                "its parameters are not those that its seed draws; expected the recipe's; make the shard "
                "again",
            )
        made = degrade(hq, params, config.spec)
        stored = contents.get((LQ_COLUMN, f"{variant}.jpg"))
        if stored is not None and stored != made:
            # albumentations is not portable, so another machine may differ without damage
            advice = (
                "compare the versions of the tools"
                if config.spec.portable
                else "it is not portable: check it where it was made"
            )
            yield DatasetProblem(
                path, f"is not what Eq. 13 makes on this machine; expected the same bytes; {advice}"
            )
