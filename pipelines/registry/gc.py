"""Garbage collection: versions that no alias, cascade or record of a root references, and orphaned files.

A version is deleted before its files, so no visible version lacks them. Files that a crash leaves are
orphans, which the next collection finds.
"""

import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipelines.registry.aliases import delete_version, locked_model, recover_all
from pipelines.registry.audit_log import open_actions
from pipelines.registry.versions import CASCADE, MODELS, UPLOADS, ModelVersion, list_versions
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import search_runs

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

_UPLOADED: Final = re.compile(r"models/[A-Za-z0-9][A-Za-z0-9-]*")
"""One folder below `models`, as an upload gets it. A tag that names another place is ignored, not deleted."""
_MAY_UPLOAD_S: Final = 86_400.0
"""A run that began less than this ago and has not ended may still be uploading."""


@dataclass(frozen=True)
class Upload:
    """Files that were uploaded for a version: at `path` below the run's `uri`, named by the run's `tag`."""

    run_id: str
    path: str
    uri: str
    tag: str


@dataclass(frozen=True)
class Removal:
    """A version or an upload that a collection removes, and why."""

    name: str
    why: str


def unreferenced_versions(
    versions: Iterable[ModelVersion], referenced: Collection[str], root: str
) -> tuple[ModelVersion, ...]:
    """Versions registered from `root` that nothing reaches.

    `referenced` are the refs and digests that records name. Reached are versions with an alias, referenced
    ones and those of other roots, and from there the stages of a cascade and the parents of a model.
    """
    every = tuple(versions)
    reached = {
        version.ref: version
        for version in every
        if version.aliases
        or not {version.ref, version.digest}.isdisjoint(referenced)
        or version.tags.get("root") != root
    }
    to_visit = list(reached.values())
    while to_visit:
        tags = to_visit.pop().tags
        named = {value for tag, value in tags.items() if tag.startswith(("stage.", "parent."))}
        for other in every:
            if other.ref not in reached and named & {other.ref, other.digest}:
                reached[other.ref] = other
                to_visit.append(other)
    return tuple(version for version in every if version.ref not in reached)


def orphans(registry: Registry, versions: Iterable[ModelVersion]) -> tuple[Upload, ...]:
    """Uploads that no version names, except those of a run that may still be uploading."""
    sources = {version.source for version in versions}
    found = []
    for run in search_runs(registry, f"tags.`{UPLOADS}` = 'yes'"):
        if run.info.status == "RUNNING" and time.time() - run.info.start_time / 1000 < _MAY_UPLOAD_S:
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
    """Remove what nothing references; with `plan` only return what that would be.

    A model is locked while its versions are judged and deleted, so its aliases do not move meanwhile.
    """
    # A cascade is deleted before its stages.
    names = (CASCADE, *(name for name in MODELS if name != CASCADE))
    if plan:
        doomed = sorted(_unreferenced(registry, referenced, root), key=lambda it: names.index(it.name))
        kept = [version for version in list_versions(registry) if version not in doomed]
        return (*map(_of_version, doomed), *map(_of_upload, orphans(registry, kept)))
    for name in names:
        recover_all(registry, name)
    removed = []
    for name in names:
        if all(version.name != name for version in _unreferenced(registry, referenced, root)):
            continue
        with locked_model(registry, name) as lock:
            for version in _unreferenced(registry, referenced, root):
                if version.name == name:
                    delete_version(lock, version, _of_version(version).why)
                    removed.append(_of_version(version))
    for upload in orphans(registry, list_versions(registry)):
        _remove(registry, upload)
        removed.append(_of_upload(upload))
    return tuple(removed)


def _unreferenced(registry: Registry, referenced: Collection[str], root: str) -> tuple[ModelVersion, ...]:
    """Unreferenced versions of a registry; those that an open action names are referenced."""
    named = set(referenced)
    for name in MODELS:
        for entry in open_actions(registry, name):
            named |= entry.named
    return unreferenced_versions(list_versions(registry), named, root)


def _uploads(info: "RunInfo", tags: Mapping[str, str]) -> list[Upload]:
    return [
        Upload(info.run_id, path, info.artifact_uri, tag)
        for tag, path in sorted(tags.items())
        if tag.startswith(f"{UPLOADS}.") and _UPLOADED.fullmatch(path)
    ]


def _of_version(version: ModelVersion) -> Removal:
    return Removal(version.ref, "no alias, no cascade and no record names it")


def _of_upload(upload: Upload) -> Removal:
    return Removal(f"run {upload.run_id}: {upload.path}", "no version names these files")


def _remove(registry: Registry, upload: Upload) -> None:
    """Delete the files, then the tag of the run that names them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(upload.uri, tracking_uri=registry.uri).delete_artifacts(upload.path)  # type: ignore[no-untyped-call]
    registry.client.delete_tag(upload.run_id, upload.tag)
