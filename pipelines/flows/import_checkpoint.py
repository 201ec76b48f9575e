"""Import a public checkpoint: convert its weights, seal them as an artifact, register them as a stage."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.digests import model_digest
from diffbfr.origin import Origin
from diffbfr.spec import to_dict
from diffbfr.stages import StageName, StageSpec
from pipelines import registry as models
from pipelines import storage
from pipelines.execution.artifact_store import ArtifactStore, Identity, flatten
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.fingerprint import code_fingerprint
from pipelines.execution.runner import run_steps
from pipelines.recipes.presets import paper
from pipelines.steps.context import fetch_artifact
from pipelines.tracking.heartbeat import run_tags
from pipelines.tracking.runs import step_run

if TYPE_CHECKING:
    from diffbfr.importing.checkpoints import OpenedCheckpoint
    from pipelines.tracking.connection import Registry


@dataclass(frozen=True)
class ImportReport:
    """A registered import: the version, its folder below the root, and where it comes from.

    `settings` are those of `--set` with which recipe `paper` trains this network further.
    """

    model: str
    stage: StageName
    folder: str
    digest: str
    origin: Origin
    notes: tuple[str, ...]
    settings: tuple[str, ...]


def import_checkpoint(opened: "OpenedCheckpoint", registry: "Registry", root: str) -> ImportReport:
    """Convert, seal and register an opened file; the same file again is the version that there is.

    UsageError if the file is damaged: then nothing is written.
    """
    store, stage = ArtifactStore(root), opened.checkpoint.stage
    origin = _origin(opened)
    identity = Identity(
        f"import-{stage.name}",
        {"checkpoint": opened.checkpoint.title, **flatten(origin, "origin"), **flatten(stage, "stage")},
        {"file": origin.sha256},
        code_fingerprint(("diffbfr.importing.checkpoints",)),
    )
    step = Step(identity, lambda folder: _convert(opened, origin, folder), lambda: "")
    run_steps([step], store)
    folder = store.artifact_dir(identity)
    lineage = models.Lineage(
        content_id="",
        recipe="import",
        artifact_id=identity.id,
        code_digest=code_digest(identity),
        parents={"file": origin.sha256},
        root=store.root,
    )
    with step_run(registry, identity.step, identity.id, run_tags(store.root)) as run:
        version = models.register_stage(run, stage.name, fetch_artifact(folder), lineage)
    settings = (f"{stage.name}.init={version.ref}", *settings_of(stage))
    return ImportReport(version.ref, stage.name, folder, version.digest, origin, opened.notes, settings)


def settings_of(stage: StageSpec) -> tuple[str, ...]:
    """The `--set` of each field in which a stage differs from the one of recipe `paper`."""
    name = stage.name
    now, then = (
        flatten(stage.trained, f"{name}.stage"),
        flatten(paper().stage(name).stage.trained, f"{name}.stage"),
    )
    return tuple(f"{path}={_written(value)}" for path, value in now.items() if value != then[path])


def code_digest(identity: Identity) -> str:
    """A digest of the code that an artifact was made by."""
    return hashlib.sha256(json.dumps(dict(identity.code), sort_keys=True).encode()).hexdigest()[:20]


def _origin(opened: "OpenedCheckpoint") -> Origin:
    known = opened.checkpoint
    return Origin(known.title, opened.path.name, storage.digest(opened.path), known.licence, known.terms)


def _convert(opened: "OpenedCheckpoint", origin: Origin, folder: str) -> StepOutput:
    """Write the stage; its metadata are the origin and the terms."""
    from diffbfr.checkpoint import save_stage

    stage = opened.checkpoint.stage
    weights = opened.read()
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) if storage.is_remote(folder) else Path(folder)
        save_stage(local, stage, weights, origin=origin)
        if storage.is_remote(folder):
            storage.put_tree(local, folder)
        digest = model_digest(local, (stage.name,))
    outputs = {"weights": f"{stage.name}.safetensors", "spec": f"{stage.name}.json"}
    metadata: Mapping[str, Any] = {
        "digest": digest,
        "content_id": "",
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        **to_dict(origin),
    }
    return StepOutput(outputs, metadata, digest)


def _written(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "()"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
