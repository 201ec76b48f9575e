"""Is everything that the registry claims still there?"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from diffbfr.errors import DiffBFRError
from pipelines.registry.audit_log import log_problems, open_actions
from pipelines.registry.gc import orphans
from pipelines.registry.lock import turn
from pipelines.registry.packaging import SERVED, served_tags
from pipelines.registry.versions import (
    CASCADE,
    MODELS,
    STAGES,
    ModelVersion,
    aliases_of,
    fetch,
    list_versions,
)
from pipelines.tracking.connection import Registry


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a registered version, and what to do."""

    ref: str
    problem: str
    advice: str


def fsck(registry: Registry) -> tuple[Finding, ...]:
    """Look for dangling sources, digests and signatures that do not match, cascades without a stage, aliases
    to nothing, orphans, and a log that was tampered with.
    """
    every = list_versions(registry)
    known = {version.ref: version for version in every}
    findings = [finding for version in every for finding in _check(registry, version, known)]
    findings += [finding for name in MODELS for finding in _check_log(registry, name)]
    return tuple(findings + _dangling_aliases(registry, every) + _orphans(registry, every))


def _check(registry: Registry, version: ModelVersion, known: dict[str, ModelVersion]) -> list[Finding]:
    if not version.digest:
        return [
            Finding(
                version.ref,
                "it has no digest tag, so nobody can tell its content",
                "delete the version and register it again",
            )
        ]
    findings = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            fetch(registry, version, Path(folder))
    except DiffBFRError as error:
        findings.append(
            Finding(version.ref, str(error), "restore its files from a backup, or delete the version")
        )
    for stage in STAGES if version.name == CASCADE else ():
        ref = version.tags.get(f"stage.{stage}", "")
        if ref not in known or known[ref].digest != version.tags.get(f"stage.{stage}.digest"):
            findings.append(
                Finding(
                    version.ref, f"its {stage} {ref or '?'} is gone or another one", "run the pipeline again"
                )
            )
    return findings + (_check_served(registry, version) if version.name == CASCADE and not findings else [])


def _check_served(registry: Registry, version: ModelVersion) -> list[Finding]:
    """Whether a cascade still has the signature and the code that were registered."""
    from mlflow.artifacts import download_artifacts

    advice = "restore its files from a backup, or delete the version and register it again"
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in ("MLmodel", SERVED):
                download_artifacts(f"{version.source}/{name}", dst_path=folder, tracking_uri=registry.uri)
            found = served_tags(Path(folder))
        except (
            Exception
        ) as error:  # every artifact store, and every damage of a YAML file, has errors of its own
            return [Finding(version.ref, f"it cannot be served ({' '.join(str(error).split())})", advice)]
    return [
        Finding(
            version.ref,
            f"its {name.removeprefix('served.')} changed: {found[name][:80]}, registered "
            f"{version.tags[name][:80]}",
            advice,
        )
        for name in sorted(found)
        if name in version.tags and version.tags[name] != found[name]
    ]


def _check_log(registry: Registry, name: str) -> list[Finding]:
    """The audit log of a model; where something is odd it is read again while nobody writes."""
    if not log_problems(registry, name) and not open_actions(registry, name):
        return []
    with turn(registry, name):
        altered = [
            Finding(
                f"log of {name}",
                problem,
                "compare it with a backup of the registry, and ask who may write there",
            )
            for problem in log_problems(registry, name)
        ]
        half_done = [
            Finding(
                f"log of {name}",
                f"{it.action} {it.after or it.before} was begun at {it.when} and never ended",
                "the next change ends it",
            )
            for it in open_actions(registry, name)
        ]
    return altered + half_done


def _orphans(registry: Registry, every: tuple[ModelVersion, ...]) -> list[Finding]:
    return [
        Finding(
            f"run {upload.run_id}",
            f"it holds {upload.path}, which no version names",
            "remove it with `diffbfr models gc`",
        )
        for upload in orphans(registry, every)
    ]


def _dangling_aliases(registry: Registry, every: tuple[ModelVersion, ...]) -> list[Finding]:
    findings = []
    for name in MODELS:
        numbers = {str(version.version) for version in every if version.name == name}
        findings += [
            Finding(
                f"{name}@{alias}",
                f"the alias names version {target}, which is gone",
                "promote another version",
            )
            for alias, target in sorted(aliases_of(registry, name).items())
            if target not in numbers
        ]
    return findings
