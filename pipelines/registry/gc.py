"""What nobody needs any more: versions that no alias, no cascade and no record of a root names, and files
that no version names.

A version goes before its files, so that what can be seen is whole; files that a crash leaves are orphans,
which the next collection finds.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipelines.registry.aliases import changing, delete_version
from pipelines.registry.audit_log import open_actions
from pipelines.registry.versions import CASCADE, MODELS, UPLOADS, ModelVersion, list_versions
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import search_runs

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

_UNDER_WAY_S: Final = 86_400.0
"""A run that began less than a day ago and has not ended may still be uploading."""


@dataclass(frozen=True)
class Upload:
    """Files of a version in a run: `path` is relative to the run's files, at `uri`; `tag` of the run names
    them.
    """

    run_id: str
    path: str
    uri: str
    tag: str


@dataclass(frozen=True)
class Removal:
    """One thing that a collection removes, and why."""

    name: str
    why: str


def garbage(
    versions: Iterable[ModelVersion], referenced: Collection[str], root: str
) -> tuple[ModelVersion, ...]:
    """Versions registered from `root` that nothing reaches; `referenced` are refs and digests that records
    name.

    Reached are: what has an alias, what is referenced, what other roots registered, and from there the stages
    of a cascade and the models that a model learnt from.
    """
    every = tuple(versions)
    reached = {
        v.ref: v
        for v in every
        if v.aliases or {v.ref, v.digest} & {*referenced} or v.tags.get("root") != root
    }
    waiting = list(reached.values())
    while waiting:
        tags = waiting.pop().tags
        named = {value for tag, value in tags.items() if tag.startswith(("stage.", "parent."))}
        for other in every:
            if other.ref not in reached and named & {other.ref, other.digest}:
                reached[other.ref] = other
                waiting.append(other)
    return tuple(version for version in every if version.ref not in reached)


def orphans(registry: Registry, versions: Iterable[ModelVersion]) -> tuple[Upload, ...]:
    """Files of versions that were never made, or are gone; not those of a run that may still be uploading."""
    sources = {version.source for version in versions}
    found = []
    for run in search_runs(registry, f"tags.`{UPLOADS}` = 'yes'"):
        if run.info.status == "RUNNING" and time.time() - run.info.start_time / 1000 < _UNDER_WAY_S:
            continue
        found += [
            upload
            for upload in _uploads(run.info, run.data.tags)
            if f"{upload.uri}/{upload.path}" not in sources
        ]
    return tuple(found)


def collect_garbage(
    registry: Registry, root: str, referenced: Collection[str], plan: bool = False
) -> tuple[Removal, ...]:
    """Remove what nothing names; with `plan` only say what that is. Each model's aliases stand still while
    its versions are judged.
    """
    if plan:
        doomed = sorted(_doomed(registry, referenced, root), key=lambda version: version.name != CASCADE)
        left = [version for version in list_versions(registry) if version not in doomed]
        return (*map(_of_version, doomed), *(_of_upload(upload) for upload in orphans(registry, left)))
    removed = []
    for name in (CASCADE, *(model for model in MODELS if model != CASCADE)):  # a cascade before its stages
        with changing(registry, name) as held:
            for version in _doomed(registry, referenced, root):
                if version.name == name:
                    delete_version(held, version, _of_version(version).why)
                    removed.append(_of_version(version))
    for upload in orphans(registry, list_versions(registry)):
        _remove(registry, upload)
        removed.append(_of_upload(upload))
    return tuple(removed)


def _doomed(registry: Registry, referenced: Collection[str], root: str) -> tuple[ModelVersion, ...]:
    """Garbage of a registry; what an action that is not settled yet moves from or to is none."""
    versions = list_versions(registry)
    begun = {ref for name in MODELS for entry in open_actions(registry, name) for ref in entry.named}
    return garbage(versions, {*referenced, *begun}, root)


def _uploads(info: "RunInfo", tags: Mapping[str, str]) -> list[Upload]:
    return [
        Upload(info.run_id, path, info.artifact_uri, tag)
        for tag, path in sorted(tags.items())
        if tag.startswith(f"{UPLOADS}.")
    ]


def _of_version(version: ModelVersion) -> Removal:
    return Removal(version.ref, "no alias, no cascade and no record names it")


def _of_upload(upload: Upload) -> Removal:
    return Removal(f"run {upload.run_id}: {upload.path}", "no version names these files")


def _remove(registry: Registry, upload: Upload) -> None:
    """Files first, then the tag that leads to them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(upload.uri, tracking_uri=registry.uri).delete_artifacts(upload.path)  # type: ignore[no-untyped-call]
    registry.client.delete_tag(upload.run_id, upload.tag)
