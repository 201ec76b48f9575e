"""Registration: each stage and the cascade become versions whose tags lead back to the photos."""

import hashlib
import json

from diffbfr.stages import STAGE_NAMES, StageName
from pipelines import registry as models
from pipelines.artifacts import Identity
from pipelines.flows.drivers import run_tags
from pipelines.flows.workshop import Workshop, local
from pipelines.steps.scores import read_evaluation


def register_all(shop: Workshop) -> dict[str, str]:
    """Register what a run made and return its versions by name; what is there already stays the version it is.

    All files lie in the one MLflow run of the step, which is also the diary's.
    """
    tracking = shop.recipe.tracking
    registry = models.open_registry(shop.store.root, tracking.uri, tracking.experiment)
    evaluation = read_evaluation(shop.folder("evaluate"))
    folder = local(shop.folder("cascade"))
    with models.step_run(registry, "register", shop.steps["register"].id, run_tags(shop.store.root)) as run:
        stages: dict[StageName, models.ModelVersion] = {}
        for name in STAGE_NAMES:
            stages[name] = models.register_stage(run, name, folder, _lineage(shop, name))
        cascade = models.register_cascade(run, folder, stages, _lineage(shop, "cascade"))
        models.record_evaluation(registry, cascade, evaluation)
        holdout = models.holdout_of(evaluation, shop.folder("shard"))
        models.freeze_holdout(registry, holdout, f"the first evaluation, of {cascade.ref}", first_only=True)
    return {version.name: version.ref for version in (*stages.values(), cascade)}


def _lineage(shop: Workshop, name: str) -> models.Lineage:
    """Where a stage, or the cascade, comes from."""
    step = shop.steps["cascade" if name == "cascade" else f"train-{name}"]
    parents = {"dataset": shop.steps["shard"].id}
    if start := shop.initial_digest():
        parents["init"] = start
    if name == "irm2" and "condition-irm1" in shop.steps:
        parents |= {"irm1": shop.facts("condition-irm1")["irm1"], "column": shop.steps["condition-irm1"].id}
    return models.Lineage(
        content_id=shop.facts("shard")["content_id"],
        recipe=shop.recipe.name,
        artifact_id=step.id,
        code_digest=_code_digest(step.identity),
        parents=parents,
        root=shop.store.root,
    )


def _code_digest(identity: Identity) -> str:
    return hashlib.sha256(json.dumps(dict(identity.code), sort_keys=True).encode()).hexdigest()[:20]
