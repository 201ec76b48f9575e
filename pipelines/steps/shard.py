"""Photos to shards: one task makes one shard of every column, with the degradations of Eq. 13 applied.

A shard is a pure function of its task: retried, run twice or run elsewhere it writes the same bytes. A photo
that cannot be used is quarantined with a reason; inputs = committed + quarantined is asserted for each shard
and for the dataset. `finish_dataset` then writes the tables and `dataset.json`.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from diffbfr.errors import IncompleteError, QuarantineError, UsageError
from diffbfr.images import ImageRefused
from diffbfr.shards import DatasetInfo, Member, Sample, Split
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.cluster.protocol import ReportCounts
from pipelines.dataset import commits, manifest
from pipelines.dataset.aligned_photos import PhotoSamples, face_key, make_aligned_faces
from pipelines.dataset.commits import Commit, Quarantined, StagedFiles, StagedTar
from pipelines.dataset.detector_copy import DETECTOR, fetch_detector
from pipelines.dataset.identity import archive_line, visible_content
from pipelines.dataset.retry import clean_up_retry, restore_unchanged
from pipelines.dataset.reuse import open_sample_cache
from pipelines.dataset.samples import CachedSample, Face, ShardConfig, make_face, remake_face
from pipelines.dataset.shard_plan import COMMITS, ShardTask, describe_build, plan_shards
from pipelines.sources import PhotoRef, PhotoUnreadableError
from pipelines.sources.sandbox import WorkerFailure, run_sandboxed
from pipelines.steps.definition import StepDef, driver_only

if TYPE_CHECKING:
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext

__all__ = ["SHARD", "ShardConfig", "ShardReport", "ShardTask", "finish_dataset", "plan_shards", "shard"]

ALIGN_SECONDS: Final = 600.0
"""A detector takes half a second for a photo of one megapixel, and a photo may have a hundred."""


@dataclass(frozen=True)
class ShardReport:
    """The result of one task, with photos counted; `skipped` if a valid commit existed.

    `faces` are the samples, several of a photo with `align`.
    """

    index: int
    committed: int
    quarantined: int
    skipped: bool
    seconds: float
    faces: int

    def counts(self) -> ReportCounts:
        """The photos of this run; none where an earlier run made the shard."""
        if self.skipped:
            return ReportCounts({})
        outcomes = {"committed": self.committed, "quarantined": self.quarantined}
        return ReportCounts(outcomes, faces=self.faces)


def shard(task: ShardTask) -> ShardReport:
    """Make one shard unless it is committed: read, decode, resize and degrade every photo.

    The tars are written first and the commit record last.
    """
    started = time.monotonic()
    done = commits.find(task.dataset_root, COMMITS, task.index, task.digest)
    if done is not None:
        return _report(done, True, started)
    samples, refused, staged = _make(task)
    commit = Commit(
        task.index, task.digest, tuple(samples), tuple(tar.info for tar in staged), tuple(refused)
    )
    _assert_all_counted(task, commit)
    published = commits.publish(task.dataset_root, COMMITS, commit, staged)
    clean_up_retry(task)
    return _report(published, False, started)


def _report(commit: Commit, skipped: bool, started: float) -> ShardReport:
    seconds = time.monotonic() - started
    return ShardReport(
        commit.index, commit.num_used, len(commit.quarantined), skipped, seconds, len(commit.samples)
    )


def finish_dataset(dataset_root: str, tasks: Sequence[ShardTask], max_bad: int | None = None) -> DatasetInfo:
    """Collect the commits of all tasks into the manifest, the quarantine table and, last, `dataset.json`.

    IncompleteError names a shard without a commit. More than `max_bad` refused photos (None: any number, but
    not all) raise a QuarantineError, after the quarantine table is written and before the dataset is
    finished.
    """
    root = storage.absolute(dataset_root)
    config = tasks[0].config
    tables = {
        column.column: manifest.TableWriter(
            storage.join(root, manifest.members_path(column.column)), Member, root
        )
        for column in config.columns
    }
    samples = manifest.TableWriter(storage.join(root, manifest.SAMPLES), Sample, root)
    quarantine = manifest.TableWriter(storage.join(root, manifest.QUARANTINE), Quarantined, root)
    reasons, splits = Counter[str](), Counter[Split]()
    content, archive = hashlib.sha256(), hashlib.sha256()
    num_used = 0
    for task in tasks:
        commit = _committed(root, task, len(tasks))
        samples.append(commit.samples)
        quarantine.append(commit.quarantined)
        reasons.update(row.reason for row in commit.quarantined)
        splits.update(sample.split for sample in commit.samples)
        num_used += commit.num_used
        for record in commit.tars:
            tables[record.tar.partition("/")[0]].append(record.members)
            archive.update(archive_line(record))
        content.update(visible_content(commit))
    # the quarantine table is written first, so that it can be read if the check below fails
    digests = {manifest.QUARANTINE: quarantine.close()}
    _refuse_too_many(reasons, num_used, max_bad, storage.join(root, manifest.QUARANTINE))
    if not splits["train"] and config.val_fraction + config.test_fraction < 1:
        raise UsageError(
            f"none of {num_used} photos fell into the train split; expected at least one; add photos "
            "or lower the fractions"
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
        source=without_secrets(tasks[0].source.uri.encode("utf-8", "backslashreplace").decode()),
    )
    manifest.write_record(root, info, config.columns, describe_build(config), digests)
    return info


def _make(task: ShardTask) -> tuple[list[Sample], list[Quarantined], list[StagedFiles]]:
    """Make the samples of a shard one by one and add them to its tars.

    Only the tars keep the content, so that a worker holds its shard in memory once.
    """
    unchanged = restore_unchanged(task)
    tars = [StagedTar(column.column, task.index) for column in task.config.columns]
    samples: list[Sample] = []
    refused: list[Quarantined] = []
    for key, ref in task.photos():
        outcome = unchanged.pop(ref.name, None) or _try_photo(task, key, ref)
        if isinstance(outcome, Quarantined):
            refused.append(outcome)
            continue
        for face in outcome:
            samples.append(face.sample)
            for tar, column, contents in zip(tars, task.config.columns, face.contents, strict=True):
                for name, content in zip(column.names, contents, strict=True):
                    tar.add(face.sample.key, name, content)
    return samples, refused, [tar.finish() for tar in tars]


def _try_photo(task: ShardTask, key: str, ref: PhotoRef) -> tuple[Face, ...] | Quarantined:
    """Make the samples of one photo, or the reason why it is quarantined.

    Files in other datasets are reused. A photo that must be decoded is decoded in a child process.
    """
    try:
        data = task.source.read(ref)
    except PhotoUnreadableError as error:
        return Quarantined(ref.name, ref.bytes, "", "read", "unreadable", str(error))
    try:
        if task.reuse_from:
            digest = hashlib.sha256(data).hexdigest()
            kept = open_sample_cache(task.reuse_from, task.config).find(digest)
            if kept:
                return tuple(_remake(task, key, ref, len(data), digest, cached) for cached in kept)
        outcome = _make_samples(task, key, ref, data)
    except ImageRefused as error:
        return Quarantined(
            ref.name, len(data), hashlib.sha256(data).hexdigest(), "decode", error.reason_code, str(error)
        )
    if isinstance(outcome, WorkerFailure):
        message = f"decoding it failed: {outcome.message}"
        return Quarantined(
            ref.name, len(data), hashlib.sha256(data).hexdigest(), "decode", outcome.reason, message
        )
    if not outcome.faces:
        return Quarantined(
            ref.name, len(data), hashlib.sha256(data).hexdigest(), "align", outcome.reason, outcome.message
        )
    return outcome.faces


def _make_samples(task: ShardTask, key: str, ref: PhotoRef, data: bytes) -> PhotoSamples | WorkerFailure:
    """The centred square of a photo, or with `align` all of its faces, made in a child process."""
    arguments = (task.config, key, ref.name, data, task.source.encodes_itself)
    if task.config.align:
        weights = fetch_detector(task.detector, task.config.detector)
        return run_sandboxed(
            make_aligned_faces, *arguments, weights, returns=PhotoSamples, seconds=ALIGN_SECONDS
        )
    outcome = run_sandboxed(make_face, *arguments, returns=Face)
    return outcome if isinstance(outcome, WorkerFailure) else PhotoSamples((outcome,))


def _remake(
    task: ShardTask, key: str, ref: PhotoRef, num_bytes: int, digest: str, cached: CachedSample
) -> Face:
    face = cached.truth.face
    own_key = key if face is None else face_key(key, face)
    return remake_face(task.config, own_key, ref.name, num_bytes, digest, cached, task.source.encodes_itself)


def _assert_all_counted(task: ShardTask, commit: Commit) -> None:
    if task.num_photos != commit.num_used + len(commit.quarantined):
        raise AssertionError(
            f"shard {task.index}: {task.num_photos} inputs, {commit.num_used} committed, "
            f"{len(commit.quarantined)} quarantined"
        )


def _committed(root: str, task: ShardTask, num_tasks: int) -> Commit:
    commit = commits.find(root, COMMITS, task.index, task.digest)
    if commit is None:
        raise IncompleteError(
            f"shard {task.index} of {num_tasks} in {root} has no valid commit; expected all; run the same "
            "command again"
        )
    _assert_all_counted(task, commit)
    return commit


def _refuse_too_many(reasons: Counter[str], num_used: int, max_bad: int | None, table: str) -> None:
    bad, total = reasons.total(), reasons.total() + num_used
    limit = total - 1 if max_bad is None else min(max_bad, total - 1)
    if bad > limit:
        reason, count = reasons.most_common(1)[0]
        raise QuarantineError(
            f"{bad} of {total} photos were refused, {count} of them as {reason}; expected at most {limit}; "
            f"see {table}, then mend the photos, raise the limit, or `diffbfr data retry` if their reason "
            "has passed"
        )


@driver_only
def _config(recipe: "Recipe") -> dict[str, Any]:
    """The configuration and the versions of the tools, since another codec may give other pixels or bytes."""
    from pipelines.execution.artifact_store import flatten

    config = recipe.data.shard_config
    return flatten(config) | flatten({"tools": describe_build(config)["tools"]})


@driver_only
def _build(ctx: "RunContext", folder: str) -> "StepOutput":
    """Make the dataset, one task for each shard."""
    from pipelines.dataset.reuse import sibling_datasets
    from pipelines.execution.dag import StepOutput
    from pipelines.sources import open_source
    from pipelines.steps.context import committed_outputs

    data = ctx.recipe.data
    config = data.shard_config
    detector = data.find_detector() if data.align else None
    tasks = plan_shards(open_source(data.faces), config, folder, sibling_datasets(folder), detector)
    ctx.cluster.map(shard, tasks, label="shard", unit="img", weight=lambda task: task.num_photos)
    info = finish_dataset(folder, tasks, data.max_bad)
    tables = (manifest.members_path(column.column) for column in config.columns)
    # the outputs of the step are the shards' files and these tables
    index = [manifest.DATASET_RECORD, manifest.SAMPLES, manifest.QUARANTINE, *tables]
    index += [f"{DETECTOR}/{task.detector.rpartition('/')[2]}" for task in tasks[:1] if task.detector]
    outputs = committed_outputs(folder, COMMITS, len(tasks), index)
    return StepOutput(outputs, asdict(info), info.content_id)


@driver_only
def _estimate(recipe: "Recipe") -> str:
    what = "every face of each photo, aligned to" if recipe.data.align else "faces of"
    return f"{what} {recipe.data.hq_px} px x {recipe.data.variants} variants"


SHARD = StepDef("shard", (__name__,), _config, _build, _estimate)
