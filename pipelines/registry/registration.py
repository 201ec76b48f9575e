"""Registration of stages and cascades: the files are uploaded and read back before a version names them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from diffbfr.digests import model_digest, model_files
from diffbfr.errors import UsageError
from diffbfr.origin import licences, read_origin, read_origins
from diffbfr.stages import STAGE_NAMES, StageName
from pipelines.registry.fetching import fetch
from pipelines.registry.lock import model_lock
from pipelines.registry.packaging import copy_files, save_served, served_tags
from pipelines.registry.versions import (
    CASCADE,
    CASCADE_RECORD,
    UPLOADS,
    Lineage,
    ModelVersion,
    get_version,
    list_versions,
    to_version,
)
from pipelines.tracking.connection import Registry, ensure_model
from pipelines.tracking.runs import Run, masked


def register_stage(run: Run, stage: StageName, folder: Path, lineage: Lineage) -> ModelVersion:
    """Register a trained stage, or find the version with the same content. It becomes the candidate."""
    digest = model_digest(folder, (stage,))
    with tempfile.TemporaryDirectory() as temporary:
        upload = copy_files(model_files(folder, (stage,)), Path(temporary) / stage)
        tags = {**lineage.tags(), "stage": stage, **_origin_tags(folder, stage)}
        return _register(run, f"diffbfr-{stage}", digest, upload, tags)


def register_cascade(
    run: Run, folder: Path, stages: Mapping[StageName, ModelVersion], lineage: Lineage
) -> ModelVersion:
    """Register a cascade of these three stage versions as a servable MLflow model. It becomes the candidate.

    UsageError if a stage in the folder is not the version named, or IRM-2 learnt from another IRM-1.
    """
    digest = model_digest(folder, STAGE_NAMES)
    _check_triple(folder, stages)
    tags = lineage.tags()
    for stage in STAGE_NAMES:
        tags |= {f"stage.{stage}": stages[stage].ref, f"stage.{stage}.digest": stages[stage].digest}
    origins = read_origins(folder, STAGE_NAMES)
    tags |= {f"licence.{stage}": licences([origin])[0] for stage, origin in origins.items()}
    with tempfile.TemporaryDirectory() as temporary:
        # MLflow keeps the last part of the folder's path as the artifact's name.
        files = copy_files(
            [folder / CASCADE_RECORD, *model_files(folder, STAGE_NAMES)], Path(temporary) / "cascade"
        )
        model = save_served(files, Path(temporary) / "model", digest, licences(origins.values()))
        return _register(run, CASCADE, digest, model, tags | served_tags(model))


def _register(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Upload, read back, create the version, move the alias: no version ever points at incomplete files.

    Of several processes that register the same content at once, one creates the version; the uploads of the
    others are left to `collect_garbage`. If the version is collected meanwhile, the loop starts again.
    """
    registry, source = run.registry, ""
    ensure_model(registry, name)
    while True:
        if not source and _find_by_digest(registry, name, digest) is None:
            source = _upload(run, name, digest, upload, tags)
        with model_lock(registry, name):
            version = _find_by_digest(registry, name, digest)
            if version is None and source:
                made = registry.client.create_model_version(
                    name, source, run.run_id, tags={**masked(tags), "digest": digest}
                )
                version = to_version(made, {})
            if version is not None:
                if "champion" not in version.aliases:
                    registry.client.set_registered_model_alias(name, "candidate", str(version.version))
                return get_version(registry, version.ref)


def _origin_tags(folder: Path, stage: StageName) -> dict[str, str]:
    """Tags of a stage that others trained, or that went on from one: what it is, and its terms."""
    origin = read_origin(folder / f"{stage}.safetensors")
    if origin is None:
        return {}
    names = {"source": "origin.source", "file": "origin.file", "sha256": "origin.sha256"}
    names |= {"licence": "licence", "terms": "licence.terms"}
    return {tag: getattr(origin, name) for name, tag in names.items()}


def _check_triple(folder: Path, stages: Mapping[StageName, ModelVersion]) -> None:
    """Refuse a cascade whose stages are not the versions named, or whose IRM-2 learnt from another IRM-1."""
    for stage in STAGE_NAMES:
        if stage not in stages or model_digest(folder, (stage,)) != stages[stage].digest:
            named = stages[stage].ref if stage in stages else "missing"
            raise UsageError(
                f"the {stage} in {folder} is not {named}; expected exactly the registered stages; build the "
                "cascade again"
            )
    from diffbfr.cascade import check_triple
    from diffbfr.checkpoint import read_stage_spec

    check_triple(*(read_stage_spec(folder, stage) for stage in STAGE_NAMES))
    check_parent(stages["irm2"], stages["irm1"].ref, stages["irm1"].digest)


def check_parent(irm2: ModelVersion, irm1_ref: str, irm1_digest: str) -> None:
    """UsageError if a version of IRM-2 learnt from another IRM-1 than this one."""
    parent = irm2.tags.get("parent.irm1")
    if parent is not None and parent != irm1_digest:
        raise UsageError(
            f"{irm2.ref} learnt from irm1 {parent[:12]}, the cascade holds {irm1_ref} ({irm1_digest[:12]}); "
            "expected the same irm1; rerun condition and train irm2"
        )


def _find_by_digest(registry: Registry, name: str, digest: str) -> ModelVersion | None:
    return next(
        (version for version in reversed(list_versions(registry, name)) if version.digest == digest), None
    )


def _upload(run: Run, name: str, digest: str, upload: Path, tags: Mapping[str, str]) -> str:
    """Upload the files to a new path in the run, read them back, and return their URI.

    The run's tag is set first, so `collect_garbage` finds what a crash leaves.
    """
    attempt = f"{digest[:12]}-{uuid4().hex[:8]}"
    path = f"models/{attempt}"
    run.log_tags({UPLOADS: "yes", f"{UPLOADS}.{attempt}": path})
    run.registry.client.log_artifacts(run.run_id, str(upload), path)
    draft = ModelVersion(name, 0, digest, (), "", f"{run.artifact_uri}/{path}", run.run_id, tags)
    with tempfile.TemporaryDirectory() as temporary:
        fetch(run.registry, draft, Path(temporary))
    return draft.source
