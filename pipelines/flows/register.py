"""Registers each stage and the cascade of a run as model versions whose tags lead back to the photos."""

import hashlib
import json
from typing import Any, Literal

from diffbfr.stages import STAGE_NAMES, StageName
from diffbfr.text import without_secrets
from pipelines import registry as models
from pipelines import storage
from pipelines.evaluation.scores import read_evaluation
from pipelines.execution.artifact_store import Identity
from pipelines.execution.dag import StepOutput
from pipelines.recipes.recipe import Recipe
from pipelines.steps.context import RunContext, fetch_artifact
from pipelines.steps.definition import StepDef, driver_only
from pipelines.tracking.connection import open_registry
from pipelines.tracking.heartbeat import run_tags
from pipelines.tracking.runs import step_run


def register_all(ctx: RunContext) -> dict[str, str]:
    """Register the models of a run; returns name -> `name@version`. A known model keeps its version.

    The files become artifacts of the step's MLflow run, which the mirror logs to as well.
    """
    tracking = ctx.recipe.tracking
    registry = open_registry(ctx.store.root, tracking.uri, tracking.experiment)
    evaluation = read_evaluation(ctx.artifact_dir("evaluate"))
    folder = fetch_artifact(ctx.artifact_dir("cascade"))
    with step_run(registry, "register", ctx.steps["register"].id, run_tags(ctx.store.root)) as run:
        stages: dict[StageName, models.ModelVersion] = {}
        for name in STAGE_NAMES:
            stages[name] = models.register_stage(run, name, folder, _lineage(ctx, name))
        cascade = models.register_cascade(run, folder, stages, _lineage(ctx, "cascade"))
        models.record_evaluation(registry, cascade, evaluation)
        holdout = models.holdout_of(evaluation, ctx.artifact_dir("shard"))
        models.freeze_holdout(registry, holdout, f"the first evaluation, of {cascade.ref}", first_only=True)
    return {version.name: version.ref for version in (*stages.values(), cascade)}


def _lineage(ctx: RunContext, name: StageName | Literal["cascade"]) -> models.Lineage:
    """Lineage of a stage, or of the cascade."""
    step = ctx.steps["cascade" if name == "cascade" else f"train-{name}"]
    parents = {"dataset": ctx.steps["shard"].id}
    if start := ctx.initial_digest(None if name == "cascade" else name):
        parents[ctx.initial_role("irm1" if name == "cascade" else name)] = start
    if name == "irm2" and "condition-irm1" in ctx.steps:
        parents |= {"irm1": ctx.metadata("condition-irm1")["irm1"], "column": ctx.steps["condition-irm1"].id}
    return models.Lineage(
        content_id=ctx.metadata("shard")["content_id"],
        recipe=ctx.recipe.name,
        artifact_id=step.id,
        code_digest=_code_digest(step.identity),
        parents=parents,
        root=ctx.store.root,
    )


def _code_digest(identity: Identity) -> str:
    return hashlib.sha256(json.dumps(dict(identity.code), sort_keys=True).encode()).hexdigest()[:20]


@driver_only
def _config(recipe: Recipe) -> dict[str, Any]:
    # the settings are recorded and logged, and the user of a server decides no result
    uri = recipe.tracking.uri
    return {"uri": uri and without_secrets(uri), "experiment": recipe.tracking.experiment}


@driver_only
def _build(ctx: RunContext, folder: str) -> StepOutput:
    versions = register_all(ctx)
    storage.write_json(storage.join(folder, "versions.json"), versions)
    return StepOutput({"versions": "versions.json"}, versions)


REGISTER = StepDef("register", (), _config, _build)
