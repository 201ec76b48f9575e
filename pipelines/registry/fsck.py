"""Integrity check of the registry: files, digests, signatures, stages, aliases, orphans and the audit log."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.stages import STAGE_NAMES
from pipelines.registry.audit_log import log_problems, open_actions
from pipelines.registry.fetching import fetch
from pipelines.registry.gc import orphans
from pipelines.registry.lock import model_lock
from pipelines.registry.packaging import SERVED, served_tags
from pipelines.registry.versions import (
    CASCADE,
    MODELS,
    ModelVersion,
    aliases_of,
    has_model,
    list_versions,
)
from pipelines.tracking.connection import Registry


@dataclass(frozen=True)
class RegistryProblem:
    """What is wrong with `ref` (a version, an alias, a run or a log), and what to do."""

    ref: str
    problem: str
    advice: str


def fsck(registry: Registry) -> tuple[RegistryProblem, ...]:
    """Every problem of the registry. Reads every file of every version."""
    versions = list_versions(registry)
    by_ref = {version.ref: version for version in versions}
    problems: list[RegistryProblem] = []
    for version in versions:
        problems += _check_version(registry, version, by_ref)
    for name in MODELS:
        problems += _check_log(registry, name)
        problems += _check_aliases(registry, name, versions)
    for upload in orphans(registry, versions):
        problem = f"it holds {upload.path}, which no version names"
        problems.append(
            RegistryProblem(f"run {upload.run_id}", problem, "remove it with `diffbfr models gc`")
        )
    return tuple(problems)


def _check_version(
    registry: Registry, version: ModelVersion, by_ref: Mapping[str, ModelVersion]
) -> list[RegistryProblem]:
    if not version.digest:
        problem = "it has no digest tag, so nobody can tell its content"
        return [RegistryProblem(version.ref, problem, "delete the version and register it again")]
    problems = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            fetch(registry, version, Path(folder))
    except DiffBFRError as error:
        advice = "restore its files from a backup, or delete the version"
        problems.append(RegistryProblem(version.ref, str(error), advice))
    if version.name != CASCADE:
        return problems
    for stage in STAGE_NAMES:
        ref = version.tags.get(f"stage.{stage}", "")
        if ref not in by_ref or by_ref[ref].digest != version.tags.get(f"stage.{stage}.digest"):
            problem = f"its {stage} {ref or '?'} is gone or another one"
            problems.append(RegistryProblem(version.ref, problem, "run the pipeline again"))
    return problems or _check_served(registry, version)


def _check_served(registry: Registry, version: ModelVersion) -> list[RegistryProblem]:
    """Problems of a cascade's signature and of the code that serves it."""
    from mlflow.artifacts import download_artifacts

    advice = "restore its files from a backup, or delete the version and register it again"
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in ("MLmodel", SERVED):
                download_artifacts(f"{version.source}/{name}", dst_path=folder, tracking_uri=registry.uri)
            found = served_tags(Path(folder))
        except Exception as error:
            # Artifact stores, and damaged YAML files, raise errors of many kinds.
            return [RegistryProblem(version.ref, f"it cannot be served ({one_line(error)})", advice)]
    problems = []
    for name in sorted(found.keys() & version.tags.keys()):
        registered = version.tags[name]
        if registered != found[name]:
            part = name.removeprefix("served.")
            problem = f"its {part} changed: {found[name][:80]}, registered {registered[:80]}"
            problems.append(RegistryProblem(version.ref, problem, advice))
    return problems


def _check_log(registry: Registry, name: str) -> list[RegistryProblem]:
    advice = (
        "compare it with a backup of the registry; a new promotion or rollback makes aliases and log agree"
    )
    problems = [
        RegistryProblem(f"log of {name}", problem, advice) for problem in log_problems(registry, name)
    ]
    if not has_model(registry, name) or not open_actions(registry, name):
        return problems
    # Under the lock no other command is at work: what is open then was left by a crash.
    with model_lock(registry, name):
        for entry in open_actions(registry, name):
            problem = (
                f"{entry.action} {entry.after or entry.before} was begun at {entry.when} and never ended"
            )
            problems.append(RegistryProblem(f"log of {name}", problem, "the next change ends it"))
    return problems


def _check_aliases(
    registry: Registry, name: str, versions: tuple[ModelVersion, ...]
) -> list[RegistryProblem]:
    """Aliases that point to a version which does not exist."""
    numbers = {str(version.version) for version in versions if version.name == name}
    problems = []
    for alias, target in sorted(aliases_of(registry, name).items()):
        if target not in numbers:
            problem = f"the alias names version {target}, which is gone"
            problems.append(RegistryProblem(f"{name}@{alias}", problem, "promote another version"))
    return problems
