"""Verification of a dataset against its commits, in five levels; each level includes those below it.

Level 0 checks the checksums of records and tables and recomputes the counts and identities. Level 1 checks
the size of each tar, level 2 the digest of every byte. Level 3 decodes every image and compares pixel
digests. Level 4 applies Eq. 13 again and compares every low-quality face byte by byte.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from diffbfr.degradation import degrade, draw, sample_seed
from diffbfr.errors import DiffBFRError, one_line
from diffbfr.images import Pixels, pixel_digest, resize
from diffbfr.shards import ColumnInfo, Sample
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields
from diffbfr.shards.tar import TarBuilder
from pipelines import storage
from pipelines.dataset import manifest
from pipelines.dataset.commits import Commit, TarInfo
from pipelines.dataset.samples import ShardConfig
from pipelines.dataset.shard_plan import COMMITS, read_config
from pipelines.dataset.verify_records import DatasetProblem, check_number_of_shards, records_of
from pipelines.sources.sandboxed_images import decode_sandboxed

LEVELS: Final = ("records", "sizes", "tar digests", "pixels", "low-quality faces")
RECORDS, SIZES, DIGESTS, PIXELS, LOW_QUALITY = range(len(LEVELS))


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
    check_number_of_shards(root, record)
    return [VerifyTask(index, root, level, record.columns, config) for index in range(record.info.num_shards)]


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


def _records(task: VerifyTask) -> list[Commit]:
    """The commit records of one shard: the dataset's own first, then one for each appended column.

    DiffBFRError if one is missing, or if they do not name one tar for each column.
    """
    records = records_of(task.dataset_root, task.columns, task.index)
    tars = chain.from_iterable(record.tars for record in records)
    named = sorted(tar.tar.partition("/")[0] for tar in tars)
    expected = sorted(column.column for column in task.columns)
    if records[0].samples and named != expected:
        raise DiffBFRError(
            f"the records of shard {task.index} name tars of {', '.join(named)}; expected one of each of "
            f"{', '.join(expected)}; make the shard again"
        )
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
        if draw(config.spec, sample_seed(config.recipe_digest, sample.seed_digest, variant)) != params:
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
