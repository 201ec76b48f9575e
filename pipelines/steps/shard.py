"""Photos to shards: one task makes one shard of every column, with Eq. 13 pre-sampled; the finish makes them a dataset.

A shard is a pure function of its task: retried, doubled or run elsewhere it writes the same bytes. A photo that cannot be used is
quarantined with a reason and counted; inputs = committed + quarantined is asserted for each shard and for the whole.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from diffbfr.images import ImageRefused
from diffbfr.shards import DatasetInfo, Member, Sample, Split
from diffbfr.shards.schema import LQ_COLUMN, LQ_RECORD, row_fields
from diffbfr.spec import from_dict
from pipelines import commits, manifest, storage
from pipelines.apart import Lost, run_apart
from pipelines.commits import Commit, Draft, Quarantined, TarDraft, TarRecord
from pipelines.sources import PhotoRef, PhotoUnreadableError
from pipelines.steps.earlier import open_earlier
from pipelines.steps.plan import COMMITS, ShardTask, describe_making, plan_shards
from pipelines.steps.replay import forget_withdrawn, take_back
from pipelines.steps.samples import Face, ShardConfig, make_face, remake_face

__all__ = ["ShardConfig", "ShardReport", "ShardTask", "finish_dataset", "plan_shards", "read_config", "shard"]


@dataclass(frozen=True)
class ShardReport:
    """What became of one task; `skipped` if its valid commit was there already."""

    index: int
    committed: int
    quarantined: int
    skipped: bool
    seconds: float


def shard(task: ShardTask) -> ShardReport:
    """Make one shard: every photo read, decoded, resized and degraded; tars first, commit record last. A valid record means no work."""
    started = time.monotonic()
    done = commits.find(task.dataset_root, COMMITS, task.index, task.digest)
    if done is not None:
        return ShardReport(task.index, len(done.samples), len(done.quarantined), True, time.monotonic() - started)
    samples, refused, drafts = _make(task)
    commit = Commit(task.index, task.digest, tuple(samples), tuple(draft.record for draft in drafts), tuple(refused))
    _assert_all_counted(task, commit)
    stands = commits.publish(task.dataset_root, COMMITS, commit, drafts)
    forget_withdrawn(task)
    return ShardReport(task.index, len(stands.samples), len(stands.quarantined), False, time.monotonic() - started)


def read_config(dataset_root: str) -> ShardConfig:
    """Read what a finished dataset was made of."""
    return from_dict(ShardConfig, dict(manifest.read_record(dataset_root).recipe), f"the recipe in {manifest.DATASET_RECORD}")


def finish_dataset(dataset_root: str, tasks: Sequence[ShardTask], max_bad: int | None = None) -> DatasetInfo:
    """Gather the commits of all tasks into manifest, quarantine table and, last, `dataset.json`.

    IncompleteError names a shard without a commit. More than `max_bad` refused photos (None: any number, but not all) is a QuarantineError,
    raised when the quarantine table is there to look at and before the dataset counts as finished.
    """
    root = storage.absolute(dataset_root)
    config = tasks[0].config
    tables = {
        column.column: manifest.TableWriter(storage.join(root, manifest.members_path(column.column)), Member) for column in config.columns
    }
    samples = manifest.TableWriter(storage.join(root, manifest.SAMPLES), Sample)
    quarantine = manifest.TableWriter(storage.join(root, manifest.QUARANTINE), Quarantined)
    reasons, splits = Counter[str](), Counter[Split]()
    content, archive = hashlib.sha256(), hashlib.sha256()
    for task in tasks:
        commit = _committed(root, task, len(tasks))
        samples.append(commit.samples)
        quarantine.append(commit.quarantined)
        reasons.update(row.reason for row in commit.quarantined)
        splits.update(sample.split for sample in commit.samples)
        for record in commit.tars:
            tables[record.tar.partition("/")[0]].append(record.members)
            archive.update(archive_line(record))
        content.update(visible_content(commit))
    digests = {manifest.QUARANTINE: quarantine.close()}
    _refuse_too_many(reasons, splits, max_bad, storage.join(root, manifest.QUARANTINE))
    if not splits["train"] and config.val_fraction + config.test_fraction < 1:
        raise UsageError(
            f"none of {splits.total()} photos fell into the train split; expected at least one; add photos or lower the fractions"
        )
    digests[manifest.SAMPLES] = samples.close()
    digests |= {manifest.members_path(column): table.close() for column, table in tables.items()}
    info = DatasetInfo(
        hq_px=config.hq_px,
        lq_px=config.lq_px,
        variants=config.variants,
        shard_size=config.shard_size,
        num_shards=len(tasks),
        num_samples=splits.total(),
        num_train=splits["train"],
        num_val=splits["val"],
        num_test=splits["test"],
        num_quarantined=reasons.total(),
        content_id=content.hexdigest(),
        archive_id=archive.hexdigest(),
        recipe_digest=config.recipe_digest,
        source=tasks[0].source.uri.encode("utf-8", "backslashreplace").decode(),
    )
    manifest.write_record(root, info, config.columns, describe_making(config), digests)
    return info


def _make(task: ShardTask) -> tuple[list[Sample], list[Quarantined], list[Draft]]:
    """Turn photo after photo into members of the shard's tars, which alone keep them: a worker holds its shard once."""
    taken_back = take_back(task)
    tars = [TarDraft(column.column, task.index) for column in task.config.columns]
    samples: list[Sample] = []
    refused: list[Quarantined] = []
    for key, ref in task.photos():
        outcome = taken_back.pop(key, None) or _try_photo(task, key, ref)
        if isinstance(outcome, Quarantined):
            refused.append(outcome)
            continue
        samples.append(outcome.sample)
        for tar, column, contents in zip(tars, task.config.columns, outcome.contents, strict=True):
            for name, content in zip(column.names, contents, strict=True):
                tar.add(key, name, content)
    return samples, refused, [tar.finish() for tar in tars]


def _try_photo(task: ShardTask, key: str, ref: PhotoRef) -> Face | Quarantined:
    """Turn one photo into one sample, or say why not. What other datasets hold of it is taken over; what must be decoded is, apart."""
    try:
        data = task.source.read(ref)
    except PhotoUnreadableError as error:
        return Quarantined(ref.name, ref.bytes, "", "read", "unreadable", str(error))
    try:
        if task.earlier:
            digest = hashlib.sha256(data).hexdigest()
            kept = open_earlier(task.earlier, task.config).find(digest)
            if kept is not None:
                return remake_face(task.config, key, ref.name, len(data), digest, kept)
        outcome: Face | Lost = run_apart(make_face, task.config, key, ref.name, data)
    except ImageRefused as error:
        return Quarantined(ref.name, len(data), hashlib.sha256(data).hexdigest(), "decode", error.reason_code, str(error))
    if isinstance(outcome, Lost):
        message = f"decoding it failed: {outcome.message}"
        return Quarantined(ref.name, len(data), hashlib.sha256(data).hexdigest(), "decode", outcome.reason, message)
    return outcome


def visible_content(commit: Commit) -> bytes:
    """Describe each sample by what a model can see of it, for `content_id`, a line each: pixels, LQ bytes, draws; no codec, no place."""
    jpegs: dict[str, list[str]] = {sample.key: [] for sample in commit.samples}
    for member in (member for record in commit.tars for member in record.members):
        if member.column == LQ_COLUMN and member.name != LQ_RECORD:
            jpegs[member.key].append(member.sha256)
    lines = [[row.key, row.split, row.pixel_sha256, row.low_pixel_sha256, jpegs[row.key], row.variants] for row in commit.samples]
    return "".join(json.dumps(line, default=row_fields, sort_keys=True) + "\n" for line in lines).encode()


def archive_line(tar: TarRecord) -> bytes:
    """Describe a tar by its bytes, for `archive_id`."""
    return f"{tar.tar}\0{tar.sha256}\n".encode()


def _assert_all_counted(task: ShardTask, commit: Commit) -> None:
    if task.num_photos != len(commit.samples) + len(commit.quarantined):
        raise AssertionError(
            f"shard {task.index}: {task.num_photos} inputs, {len(commit.samples)} committed, {len(commit.quarantined)} quarantined"
        )


def _committed(root: str, task: ShardTask, num_tasks: int) -> Commit:
    commit = commits.find(root, COMMITS, task.index, task.digest)
    if commit is None:
        raise IncompleteError(f"shard {task.index} of {num_tasks} in {root} has no valid commit; expected all; run the same command again")
    _assert_all_counted(task, commit)
    return commit


def _refuse_too_many(reasons: Counter[str], splits: Counter[Split], max_bad: int | None, table: str) -> None:
    bad, total = reasons.total(), reasons.total() + splits.total()
    limit = total - 1 if max_bad is None else min(max_bad, total - 1)
    if bad > limit:
        reason, count = reasons.most_common(1)[0]
        raise QuarantineError(
            f"{bad} of {total} photos were refused, {count} of them as {reason}; expected at most {limit}; "
            f"see {table}, then mend the photos, raise the limit, or `diffbfr data replay` if their reason has passed"
        )
