"""Assemble a cascade of stages that exist: imported ones, those of runs, or the package's, in any mix."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.digests import model_digest, model_files
from diffbfr.errors import UsageError
from diffbfr.packaged import packaged_folder, packaged_names
from diffbfr.stages import STAGE_NAMES, StageName, StageSpec
from pipelines import registry as models
from pipelines import storage
from pipelines.execution.artifact_store import ArtifactStore, Identity
from pipelines.execution.dag import Step, StepOutput
from pipelines.execution.fingerprint import code_fingerprint
from pipelines.execution.runner import run_steps
from pipelines.flows.import_checkpoint import code_digest
from pipelines.recipes.distilled import with_few_evaluations
from pipelines.steps.context import fetch_artifact
from pipelines.tracking.heartbeat import run_tags
from pipelines.tracking.runs import step_run

if TYPE_CHECKING:
    from pipelines.tracking.connection import Registry


@dataclass(frozen=True)
class AssembledCascade:
    """A registered cascade: its version, the folder, the versions of its stages, and licences of others."""

    model: str
    folder: str
    digest: str
    stages: Mapping[StageName, str]
    licences: tuple[str, ...]


@dataclass(frozen=True)
class _Chosen:
    """A stage as it was named, the folder with its weights, its specification, and the digest of both."""

    ref: str
    folder: Path
    spec: StageSpec
    digest: str


def assemble_cascade(
    names: Mapping[StageName, str], registry: "Registry", root: str, *, few: bool = False
) -> AssembledCascade:
    """Write and register a cascade of the three named stages; the same stages again are the same version.

    A stage is NAME@ALIAS of the registry, `packaged`, or a folder that holds it, alone or in a cascade. One
    that is not registered yet is registered with it. With `few` the same weights are sampled with the
    evaluations of `diffbfr distill` (`with_few_evaluations`). UsageError if the three do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="diffbfr-assemble-") as drafts:
        chosen = {stage: _choose(stage, names[stage], registry) for stage in STAGE_NAMES}
        if few:
            chosen = {stage: _with_few(it, Path(drafts) / stage) for stage, it in chosen.items()}
        return _assemble(chosen, registry, root)


def _assemble(chosen: Mapping[StageName, "_Chosen"], registry: "Registry", root: str) -> AssembledCascade:
    from diffbfr.cascade import check_triple
    from diffbfr.origin import licences, read_origins

    check_triple(*(chosen[stage].spec for stage in STAGE_NAMES))
    known = {version.digest: version for version in models.list_versions(registry)}
    if (irm2 := known.get(chosen["irm2"].digest)) is not None:
        models.check_parent(irm2, chosen["irm1"].ref, chosen["irm1"].digest)
    store = ArtifactStore(root)
    identity = Identity(
        "assemble",
        {},
        {stage: it.digest for stage, it in chosen.items()},
        code_fingerprint(("pipelines.steps.assemble",)),
    )
    run_steps([Step(identity, lambda folder: _write(chosen, folder), lambda: "")], store)
    folder = store.artifact_dir(identity)
    lineage = models.Lineage("", "assembled", identity.id, code_digest(identity), {}, store.root)
    local = fetch_artifact(folder)
    with step_run(registry, identity.step, identity.id, run_tags(store.root)) as run:
        stages = {
            stage: known.get(it.digest) or models.register_stage(run, stage, local, lineage)
            for stage, it in chosen.items()
        }
        cascade = models.register_cascade(run, local, stages, lineage)
    refs = {stage: version.ref for stage, version in stages.items()}
    terms = licences(read_origins(local, STAGE_NAMES).values())
    return AssembledCascade(cascade.ref, folder, cascade.digest, refs, terms)


def _choose(stage: StageName, ref: str, registry: "Registry") -> _Chosen:
    from diffbfr.checkpoint import read_stage_spec

    if ref in packaged_names():
        folder = packaged_folder(ref)
    elif storage.exists(ref):
        folder = fetch_artifact(storage.absolute(ref))
    elif "@" in ref:
        version = models.get_version(registry, ref)
        if stage not in version.stages:
            raise UsageError(
                f"{ref} holds {version.stages[0]}; expected {stage}, or a cascade; name another --{stage}"
            )
        ref, folder = version.ref, models.fetch(registry, version, storage.cache_folder("models"))
    else:
        raise UsageError(
            f"no {stage} at {ref}; expected {' or '.join(packaged_names())}, NAME@ALIAS of the registry or a "
            f"folder with one; correct --{stage}"
        )
    return _Chosen(ref, folder, read_stage_spec(folder, stage), model_digest(folder, (stage,)))


def _with_few(chosen: _Chosen, draft: Path) -> _Chosen:
    """The same weights beside a specification with fewer evaluations, in a folder of their own."""
    from diffbfr.checkpoint import write_stage_spec

    spec = with_few_evaluations(chosen.spec)
    if spec == chosen.spec:
        return chosen
    draft.mkdir()
    shutil.copyfile(chosen.folder / f"{spec.name}.safetensors", draft / f"{spec.name}.safetensors")
    write_stage_spec(draft, spec)
    return replace(chosen, folder=draft, spec=spec, digest=model_digest(draft, (spec.name,)))


def _write(chosen: Mapping[StageName, _Chosen], folder: str) -> StepOutput:
    """Copy the files of the stages as they are, so that their digests stay, and write the record last."""
    from diffbfr.cascade import RECORD, cascade_digest
    from diffbfr.origin import with_origins

    written = []
    for stage, it in chosen.items():
        for path in model_files(it.folder, (stage,)):
            storage.write_atomic(storage.join(folder, path.name), path.read_bytes())
            written.append(path.name)
    record: dict[str, Any] = {
        "recipe": "assembled",
        "content_id": "",
        "stages": {stage: {"ref": it.ref, "digest": it.digest} for stage, it in chosen.items()},
        "evaluations": {stage: it.spec.fast.num_evaluations for stage, it in chosen.items()},
    }
    record = with_origins(record, fetch_artifact(folder), STAGE_NAMES)
    storage.write_json(storage.join(folder, RECORD), record)
    digest = cascade_digest(fetch_artifact(folder))
    return StepOutput(
        {**{name: name for name in written}, "record": RECORD}, {"digest": digest, **record}, digest
    )
