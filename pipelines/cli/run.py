"""`diffbfr run`, and a command for each single step: the same run and flags, up to that step."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from pipelines.cli import options
from pipelines.cli.cascades import pin
from pipelines.cli.output import say, say_block, say_json, table
from pipelines.progress import duration

if TYPE_CHECKING:
    from pipelines.execution.model_ref import ModelRef
    from pipelines.recipes.recipe import Recipe

TrainedStage = Literal["irm1", "irm2", "tem"]
ConditioningStage = Literal["irm1"]


def _command(name: str, until: str | None, doc: str) -> Callable[..., None]:
    """A command that runs the pipeline up to the step `until`."""

    def command(
        recipe: options.Recipe = options.DEFAULT_RECIPE,
        faces: options.Faces = None,
        root: options.Root = options.DEFAULT_ROOT,
        config: options.Config = None,
        overrides: options.Overrides = None,
        plan: options.Plan = False,
        as_json: options.Json = False,
    ) -> None:
        run_until(until, recipe, faces, root, config, overrides, plan, as_json)

    command.__name__, command.__doc__ = name, doc
    return command


def _stage_command(name: str, stages: Any, doc: str) -> Callable[..., None]:
    """A command that runs the pipeline up to the step `NAME-STAGE`."""

    def command(
        stage: Annotated[stages, typer.Argument(help=f"{' or '.join(get_args(stages))}.", metavar="STAGE")],
        recipe: options.Recipe = options.DEFAULT_RECIPE,
        faces: options.Faces = None,
        root: options.Root = options.DEFAULT_ROOT,
        config: options.Config = None,
        overrides: options.Overrides = None,
        plan: options.Plan = False,
        as_json: options.Json = False,
    ) -> None:
        run_until(f"{name}-{stage}", recipe, faces, root, config, overrides, plan, as_json)

    command.__name__, command.__doc__ = name, doc
    return command


run = _command(
    "run",
    None,
    """Run everything: photos to a registered cascade.

    Shards, three stages, evaluation, registry and a sample restoration; finished steps are not run again.
    """,
)
shard = _command("shard", "shard", "Make the dataset only: faces and their degraded variants.")
train = _stage_command("train", TrainedStage, "Train one stage, after the steps that it needs.")
condition = _stage_command(
    "condition", ConditioningStage, "Append the column of IRM-1's pictures that IRM-2 trains on."
)


def distill(
    model: Annotated[
        str,
        typer.Argument(
            help="The teacher: NAME@ALIAS, NAME@VERSION, a cascade's folder, or packaged.", metavar="MODEL"
        ),
    ] = options.PACKAGED,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Recipe of the teacher: its data and its training.")
    ] = "tiny",
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Distil a cascade to 4 + 2 + 2 evaluations: students of its three stages, registered as a cascade.

    The same command continues an interrupted run, and does nothing when all is done.
    """
    from diffbfr.checkpoint import read_stage_spec
    from diffbfr.digests import is_model_file
    from diffbfr.stages import STAGE_NAMES
    from pipelines import storage
    from pipelines.recipes.distilled import distilled
    from pipelines.recipes.overrides import add_option, change, load, read_changes

    settings = add_option(overrides, "--faces", "data.faces", faces or None)
    base, changes = load(recipe), read_changes(config, settings)
    teacher = pin(model, root, changes.get("tracking.uri"))
    folder = storage.fetch_tree(teacher.folder, storage.cache_folder("cascades"), is_model_file)
    specs = {name: read_stage_spec(folder, name) for name in STAGE_NAMES}
    run_recipe(change(distilled(base, specs, model), changes), None, root, plan, as_json)


def run_until(
    until: str | None,
    recipe: str,
    faces: str | None,
    root: str,
    config: str | None,
    overrides: list[str] | None,
    plan: bool,
    as_json: bool,
    model: str = "",
) -> None:
    from pipelines.recipes.overrides import add_option, load

    chosen = load(recipe, config, add_option(overrides, "--faces", "data.faces", faces or None))
    cascade = pin(model, root, chosen.tracking.uri) if model else None
    run_recipe(chosen, until, root, plan, as_json, cascade)


def run_recipe(
    chosen: "Recipe",
    until: str | None,
    root: str,
    plan: bool,
    as_json: bool,
    cascade: "ModelRef | None" = None,
) -> None:
    from pipelines import storage

    storage.check_folder(root)
    if not plan:
        storage.check_writable(root)
    from pipelines.flows import train_cascade

    report = train_cascade.run(chosen, root, plan=plan, until=until, cascade=cascade)
    if as_json:
        say_json(report)
        return
    rows = [
        (step.name, step.action, step.reason, step.work if plan else duration(step.seconds))
        for step in report.steps
    ]
    say_block(table(("step", "", "why", "work" if plan else "took"), rows))
    if report.scores:
        say_block(report.scores)
    if report.page:
        say(f"report: {report.page}")
