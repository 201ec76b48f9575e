"""Assemble a cascade: the weights of each trained stage, with the specification that it is sampled with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbfr.spec import to_dict
from diffbfr.stages import STAGE_NAMES, StageName, StageSpec
from pipelines import storage
from pipelines.steps.definition import StepDef, driver_only

if TYPE_CHECKING:
    from pipelines.execution.dag import StepOutput
    from pipelines.recipes.recipe import Recipe
    from pipelines.steps.context import RunContext


def assemble(folder: str, stages: Mapping[StageName, tuple[StageSpec, str]]) -> list[str]:
    """Write the weights and the specification of each stage to a folder; return the names of the files.

    `stages` has the specification and the folder of the training for each stage. The caller writes
    `cascade.json` last.
    """
    written = []
    for name, (spec, trained) in stages.items():
        weights = storage.read_bytes(storage.join(trained, f"{name}.safetensors"))
        for file, data in ((f"{name}.json", spec_text(spec)), (f"{name}.safetensors", weights)):
            storage.write_atomic(storage.join(folder, file), data)
            written.append(file)
    return written


def spec_text(spec: StageSpec) -> bytes:
    """The content of a stage's specification file."""
    return (json.dumps(to_dict(spec), indent=1) + "\n").encode()


@driver_only
def stage_digest(ctx: "RunContext", name: StageName) -> str:
    """Digest of a trained stage as this recipe samples it: its weights and the recipe's specification."""
    from diffbfr.digests import digest_of_files
    from diffbfr.errors import UsageError

    record = ctx.record(f"train-{name}")
    if record is None:
        raise UsageError(
            f"train-{name} is not finished, or was changed meanwhile; expected its weights; "
            "run the same command again"
        )
    spec = hashlib.sha256(spec_text(ctx.recipe.stage(name).stage)).hexdigest()
    return digest_of_files(
        [(f"{name}.json", spec), (f"{name}.safetensors", record.outputs["weights"].sha256)]
    )


@driver_only
def _config(recipe: "Recipe") -> dict[str, Any]:
    from pipelines.recipes.recipe import sampling_settings

    settings: dict[str, Any] = {}
    for name in STAGE_NAMES:
        settings |= sampling_settings(recipe, name)
    return settings


@driver_only
def _build(ctx: "RunContext", folder: str) -> "StepOutput":
    """Write the three stages into one folder, and the record of their origin last."""
    from diffbfr.cascade import RECORD, cascade_digest, write_record
    from diffbfr.origin import with_origins
    from pipelines.execution.dag import StepOutput
    from pipelines.steps.context import fetch_artifact

    trained = {name: ctx.steps[f"train-{name}"] for name in STAGE_NAMES}
    stages = {
        name: (ctx.recipe.stage(name).stage, ctx.artifact_dir(step.name)) for name, step in trained.items()
    }
    outputs = assemble(folder, stages)
    origins = {
        name: {"artifact": step.id, "digest": stage_digest(ctx, name)} for name, step in trained.items()
    }
    record: dict[str, Any] = {
        "recipe": ctx.recipe.name,
        "content_id": ctx.metadata("shard")["content_id"],
        "dataset": ctx.steps["shard"].id,
        "stages": origins,
        "init": ctx.initial_digest(),
    }
    if own := {name: start for name in STAGE_NAMES if (start := ctx.initial_digest(name)) != record["init"]}:
        record["stage_init"] = own
    record = with_origins(record, fetch_artifact(folder), STAGE_NAMES)
    if storage.is_remote(folder):
        storage.write_json(storage.join(folder, RECORD), record)
    else:
        write_record(Path(folder), record)
    digest = cascade_digest(fetch_artifact(folder))
    return StepOutput(
        {**{name: name for name in outputs}, "record": RECORD}, {"digest": digest, **record}, digest
    )


CASCADE = StepDef("cascade", (__name__,), _config, _build)
