"""`diffbfr run` and its single steps: the same run, the same flags, ending where asked."""

from typing import Annotated, Literal

import typer

from pipelines.cli import options
from pipelines.cli.output import say, say_json, table
from pipelines.progress import duration

StageArgument = Annotated[Literal["irm1", "irm2", "tem"], typer.Argument(help="irm1, irm2 or tem.", metavar="STAGE")]


def run(
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Run everything: photos to a registered cascade.

    Shards, three stages, evaluation, registry, and a sample restoration; what is done already is not done again.
    """
    _run(None, recipe, faces, root, config, overrides, plan, as_json)


def shard(
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Make the dataset only: faces and their degraded variants."""
    _run("shard", recipe, faces, root, config, overrides, plan, as_json)


def train(
    stage: StageArgument,
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Train one stage, and make what it needs."""
    _run(f"train-{stage}", recipe, faces, root, config, overrides, plan, as_json)


def condition(
    stage: Annotated[Literal["irm1"], typer.Argument(help="irm1, the stage whose pictures the next learns from.", metavar="STAGE")],
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Append the column of IRM-1's pictures that IRM-2 trains on."""
    _run(f"condition-{stage}", recipe, faces, root, config, overrides, plan, as_json)


def evaluate(
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    faces: options.Faces = None,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    as_json: options.Json = False,
) -> None:
    """Measure the cascade on held-out faces."""
    _run("evaluate", recipe, faces, root, config, overrides, plan, as_json)


def _run(
    until: str | None,
    recipe: str,
    faces: str | None,
    root: str,
    config: str | None,
    overrides: list[str] | None,
    plan: bool,
    as_json: bool,
) -> None:
    from pipelines import storage
    from pipelines.settings import load

    chosen = load(recipe, config, (*([f"data.faces={faces}"] if faces else []), *(overrides or ())))
    if not plan:
        storage.check_writable(root)
    from pipelines.flows import train_cascade

    report = train_cascade.run(chosen, root, plan=plan, until=until)
    if as_json:
        say_json(report)
        return
    rows = [(step.name, step.action, step.reason, step.work if plan else duration(step.seconds)) for step in report.steps]
    say(table(("step", "", "why", "work" if plan else "took"), rows))
    if report.scores:
        say(report.scores)
    if report.page:
        say(f"report: {report.page}")
