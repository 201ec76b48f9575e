"""The whole story: photos -> shards -> three trained stages -> registered cascade -> restored archive.

Read `story` from top to bottom: each step names what it needs, and what it needs decides what it is. A step whose artifact is there is not
run again; a step that was killed goes on from its own commits and checkpoints. `pipelines/flows/making.py` is one hop further:
how each step is spread over the cluster.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffbfr.stages import SAMPLING, STAGE_NAMES, StageName
from diffbfr.training.config import UPKEEP
from pipelines import storage
from pipelines.artifacts import ArtifactStore, Decision, Record, flatten
from pipelines.cluster import Cluster
from pipelines.flows import graph, making
from pipelines.flows.diary import Diary, is_untold
from pipelines.flows.execution import execute
from pipelines.flows.graph import Step
from pipelines.flows.run_report import RunReport, StepReport
from pipelines.flows.workshop import Workshop
from pipelines.recipes import Recipe

if TYPE_CHECKING:
    from pipelines.steps.pinned_cascade import PinnedCascade


def story(shop: Workshop) -> list[Step]:
    """Every step of a run, in an order in which they can run; those that need none of each other run side by side where there is room."""
    recipe = shop.recipe
    start = shop.initial_digest()

    dataset = shard(shop)

    irm1 = train(shop, "irm1", {"dataset": dataset.id, "init": start})
    tem = train(shop, "tem", {"dataset": dataset.id, "init": start})
    columns = [condition(shop, dataset, irm1)] if recipe.irm2.training.condition == "sampled" else []
    irm2 = train(shop, "irm2", {"dataset": dataset.id, "column": columns[0].id if columns else "", "init": start})

    ways = {path: value for name in STAGE_NAMES for path, value in sampling(recipe, name).items()}
    cascade = shop.step("cascade", ways, {"irm1": irm1.id, "irm2": irm2.id, "tem": tem.id}, making.make_cascade)
    evaluation = evaluate(shop, dataset, cascade.id)
    tracking = {"uri": recipe.tracking.uri, "experiment": recipe.tracking.experiment}
    registered = shop.step("register", tracking, {"cascade": cascade.id, "evaluation": evaluation.id}, making.make_versions)
    shown = _but(flatten(recipe.restore), "unit_size") | {"mode": recipe.sampling.mode}
    shown |= {"split": recipe.evaluate.split, "variant": recipe.evaluate.variant}
    restored = shop.step("restore", shown, {"cascade": cascade.id, "dataset": dataset.id}, making.make_restored_archive)

    return [dataset, irm1, tem, *columns, irm2, cascade, evaluation, registered, restored]


def measuring(shop: Workshop, cascade: "PinnedCascade") -> list[Step]:
    """The two steps that measure a cascade which is there already."""
    dataset = shard(shop)
    return [dataset, evaluate(shop, dataset, cascade.digest)]


def shard(shop: Workshop) -> Step:
    """Photos to shards, with Eq. 13 pre-sampled; another version of a codec may make other pixels, or other files of the same."""
    from pipelines.steps.plan import describe_making

    config = shop.recipe.data.shard
    made_by = flatten({"tools": describe_making(config)["tools"]})
    return shop.step("shard", flatten(config) | made_by, {"photos": shop.photos_digest()}, making.make_dataset)


def evaluate(shop: Workshop, dataset: Step, cascade: str) -> Step:
    """Every output of Algorithm 1 against the ground truth of the hold-out."""
    recipe = shop.recipe
    config = _but(flatten(recipe.evaluate), "batch") | {"mode": recipe.sampling.mode} | shop.metric_digests()
    return shop.step("evaluate", config, {"cascade": cascade, "dataset": dataset.id}, making.make_evaluation)


def train(shop: Workshop, name: StageName, inputs: dict[str, str]) -> Step:
    """Train one stage (Eq. 8, 9, 11); how it is sampled is no matter of its weights."""
    config = shop.recipe.stage(name)
    settings = _but(flatten(config.stage, "stage"), *(f"stage.{field}" for field in SAMPLING)) | flatten(config.training, "training")
    settings = _but(settings, *(f"training.{field}" for field in UPKEEP))
    return shop.step(f"train-{name}", settings, inputs, making.make_stage(name))


def condition(shop: Workshop, dataset: Step, irm1: Step) -> Step:
    """IRM-1 over every face: the column that IRM-2 trains on (Eq. 9)."""
    sampled = sampling(shop.recipe, "irm1") | {"mode": shop.recipe.sampling.mode}
    return shop.step("condition-irm1", sampled, {"dataset": dataset.id, "irm1": irm1.id}, making.make_column)


def sampling(recipe: Recipe, name: StageName) -> dict[str, Any]:
    """How a stage is sampled, by `irm1.stage.start` and the like."""
    spec = recipe.stage(name).stage
    return flatten({field: getattr(spec, field) for field in SAMPLING}, f"{name}.stage")


def _but(settings: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """The settings without some, and without all in them if they are groups: how the work is done, and not what comes of it."""
    return {path: value for path, value in settings.items() if not any(f"{path}.".startswith(f"{out}.") for out in left_out)}


def run(recipe: Recipe, root: str, *, plan: bool = False, until: str | None = None, cascade: "PinnedCascade | None" = None) -> RunReport:
    """Run what is not done yet, up to the step `until`; with `plan` only say what that is. A given cascade is only measured."""
    started = time.monotonic()
    store = ArtifactStore(root)
    with Cluster(recipe.cluster) as cluster:
        shop = Workshop(recipe, store, cluster, cascade)
        steps = graph.until(story(shop) if cascade is None else measuring(shop, cascade), until)
        decisions = graph.plan(steps, store)
        if plan:
            return RunReport(recipe.name, store.root, tuple(map(_planned, steps, decisions)), time.monotonic() - started)
        finished = all(decision.action == "HIT" for decision in decisions) and not is_untold(store.root)
        done = execute(steps, store) if finished else _execute(steps, shop)
    return _report(shop, done, decisions, time.monotonic() - started)


def _execute(steps: list[Step], shop: Workshop) -> list[graph.Done]:
    """Run the steps with the diary open."""
    with Diary(shop.recipe, shop.store, steps, making.plan_digest(steps)) as diary:
        shop.on_posts, shop.on_panel = diary.hear, diary.show

        def around(step: Step, make: Callable[[], Record]) -> Record:
            return diary.around(step, make, shop.store.folder(step.identity))

        return execute(steps, shop.store, around, shop.cluster.stop)


def _planned(step: Step, decision: Decision) -> StepReport:
    work = step.work() if decision.action == "RUN" else ""
    return StepReport(step.name, decision.action, decision.reason, work, 0.0, step.id)


def _report(shop: Workshop, done: list[graph.Done], decisions: list[Decision], seconds: float) -> RunReport:
    """Tell how it went; the page is written when anything is new."""
    from pipelines.flows.page import page_place, write_page

    lines = tuple(
        StepReport(it.step.name, decision.action, decision.reason, "", it.record.seconds, it.step.id)
        for it, decision in zip(done, decisions, strict=True)
    )
    complete = "restore" in shop.steps and len(done) == len(shop.steps)
    if complete and (any(line.action == "RUN" for line in lines) or not storage.exists(page_place(shop))):
        write_page(shop, lines, seconds)
    page = page_place(shop) if complete else ""
    return RunReport(shop.recipe.name, shop.store.root, lines, seconds, page, _scores(shop, lines))


def _scores(shop: Workshop, lines: tuple[StepReport, ...]) -> str:
    """The table of the evaluation, if this run went so far."""
    from pipelines.steps.scores import format_table, read_evaluation

    if not any(line.name == "evaluate" for line in lines):
        return ""
    return format_table(read_evaluation(shop.folder("evaluate")))
