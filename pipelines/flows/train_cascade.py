"""The whole pipeline: photos -> shards -> three trained stages -> registered cascade -> restored archive.

Read `build_pipeline` from top to bottom: each line adds a step and names what it needs. One hop further is
the step itself, in one file of `pipelines/steps/`. A step whose artifact exists is not run again; a step that
was killed continues from its own commits and checkpoints.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from diffbfr.stages import STAGE_NAMES
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.execution import dag
from pipelines.execution.artifact_store import ArtifactStore, Record
from pipelines.execution.dag import Step
from pipelines.execution.decision import Decision
from pipelines.execution.run_report import RunReport, StepReport
from pipelines.execution.runner import run_steps
from pipelines.flows.initial_weights import find_initial
from pipelines.flows.preflight import check_run
from pipelines.flows.register import REGISTER
from pipelines.flows.restore_samples import RESTORE
from pipelines.recipes.recipe import Recipe
from pipelines.steps.assemble import CASCADE
from pipelines.steps.condition import CONDITION
from pipelines.steps.context import RunContext
from pipelines.steps.evaluate import EVALUATE
from pipelines.steps.shard import SHARD
from pipelines.steps.train import TRAIN
from pipelines.tracking.heartbeat import has_pending_tracking
from pipelines.tracking.mirror import MlflowMirror

if TYPE_CHECKING:
    from pipelines.execution.model_ref import ModelRef


def build_pipeline(ctx: RunContext) -> list[Step]:
    """Add every step of a run, in an order in which they can run."""
    dataset = ctx.add(SHARD, photos=ctx.photos_digest())  # with Eq. 13 applied in advance

    init = {name: {ctx.initial_role(name): ctx.initial_digest(name)} for name in STAGE_NAMES}
    irm1 = ctx.add(TRAIN["irm1"], dataset=dataset.id, **init["irm1"])  # Eq. 8
    tem = ctx.add(TRAIN["tem"], dataset=dataset.id, **init["tem"])  # Eq. 11, in parallel with IRM-1
    column = ""
    if ctx.recipe.irm2.training.condition != "resized":
        column = ctx.add(CONDITION, dataset=dataset.id, irm1=irm1.id).id  # IRM-1's outputs, x~'_0 of Eq. 9
    irm2 = ctx.add(TRAIN["irm2"], dataset=dataset.id, column=column, **init["irm2"])  # Eq. 9

    cascade = ctx.add(CASCADE, irm1=irm1.id, irm2=irm2.id, tem=tem.id)
    evaluation = ctx.add(EVALUATE, cascade=cascade.id, dataset=dataset.id)
    ctx.add(REGISTER, cascade=cascade.id, evaluation=evaluation.id)
    ctx.add(RESTORE, cascade=cascade.id, dataset=dataset.id)
    return list(ctx.steps.values())


def build_evaluation(ctx: RunContext, cascade_digest: str) -> list[Step]:
    """Add the two steps that evaluate a cascade which exists already."""
    dataset = ctx.add(SHARD, photos=ctx.photos_digest())
    ctx.add(EVALUATE, cascade=cascade_digest, dataset=dataset.id)
    return list(ctx.steps.values())


def run(
    recipe: Recipe,
    root: str,
    *,
    plan: bool = False,
    until: str | None = None,
    cascade: "ModelRef | None" = None,
) -> RunReport:
    """Run what is not done yet, up to the step `until`; with `plan` only report what that is.

    A given `cascade` is only evaluated.
    """
    started = time.monotonic()
    store = ArtifactStore(root)
    mirror = MlflowMirror(recipe, store)
    with Cluster(recipe.cluster) as cluster:
        ctx = RunContext(
            recipe,
            store,
            cluster,
            cascade,
            find_model=partial(find_initial, recipe, store.root),
            on_metrics=mirror.log_metrics,
            on_panel=mirror.log_panel,
        )
        steps = build_pipeline(ctx) if cascade is None else build_evaluation(ctx, cascade.digest)
        steps = dag.truncate_at(steps, until)
        decisions = dag.plan(steps, store)
        if plan:
            planned = tuple(map(_planned, steps, decisions))
            return RunReport(recipe.name, store.root, planned, time.monotonic() - started)
        if all(it.action == "HIT" for it in decisions) and not has_pending_tracking(store.root):
            results = run_steps(steps, store)
        else:
            check_run(ctx, decisions)
            results = _run_tracked(ctx, steps, mirror)
    return _report(ctx, results, time.monotonic() - started)


def _run_tracked(ctx: RunContext, steps: list[Step], mirror: MlflowMirror) -> list[dag.StepResult]:
    """Run the steps, each inside an MLflow run of its own."""

    def track(step: Step, build: Callable[[], Record]) -> Record:
        return mirror.track_step(step, build, ctx.store.artifact_dir(step.identity))

    with mirror.following(steps, dag.plan_digest(steps)):
        return run_steps(steps, ctx.store, track, ctx.cluster.stop)


def _planned(step: Step, decision: Decision) -> StepReport:
    work = step.estimate() if decision.action == "RUN" else ""
    return StepReport(step.name, decision.action, decision.reason, work, 0.0, step.id)


def _finished(result: dag.StepResult) -> StepReport:
    decision = result.decision
    return StepReport(
        decision.step, decision.action, decision.reason, "", result.record.seconds, result.step.id
    )


def _report(ctx: RunContext, results: list[dag.StepResult], seconds: float) -> RunReport:
    """Summarise the run, with the decisions that it acted on; the page is written again if any step ran."""
    from pipelines.flows.run_page import page_place, write_page

    lines = tuple(map(_finished, results))
    page = ""
    if RESTORE.name in ctx.steps and len(results) == len(ctx.steps):
        page = page_place(ctx)
        if any(line.action == "RUN" for line in lines) or not storage.exists(page):
            write_page(ctx, lines, seconds)
    return RunReport(ctx.recipe.name, ctx.store.root, lines, seconds, page, _scores(ctx, lines))


def _scores(ctx: RunContext, lines: tuple[StepReport, ...]) -> str:
    """The table of the evaluation; "" if the run did not go that far."""
    from pipelines.evaluation.scores import format_table, read_evaluation

    if not any(line.name == EVALUATE.name for line in lines):
        return ""
    return format_table(read_evaluation(ctx.artifact_dir(EVALUATE.name)))
