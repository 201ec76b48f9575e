"""`diffbfr models promote`, `holdout`, `rollback`, `fsck` and `gc`: which cascade is in charge and kept."""

from typing import TYPE_CHECKING, Annotated

import typer

from diffbfr.errors import QuarantineError
from pipelines.cli import options
from pipelines.cli.cascades import open_existing
from pipelines.cli.data import find_dataset
from pipelines.cli.output import say, say_block, say_json, table

if TYPE_CHECKING:
    from pipelines.registry import HoldOut

Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.", metavar="TEXT")]


def promote(
    ref: options.ModelRef = "diffbfr-cascade@candidate",
    force: Annotated[
        bool, typer.Option("--force", help="Promote even if it measures worse than the champion.")
    ] = False,
    why: Why = "",
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Make a version the champion, if it measures no worse than the present one on the hold-out.

    Versions that were not evaluated there yet are evaluated first.
    """
    from pipelines.flows.promote import promote as evaluate_and_promote
    from pipelines.recipes.overrides import add_option, load
    from pipelines.registry import RegressionError, format_comparisons

    settings = add_option(overrides, "--tracking", "tracking.uri", tracking or None)
    recipe = load(options.DEFAULT_RECIPE, config, settings)
    try:
        promotion = evaluate_and_promote(
            open_existing(root, recipe.tracking.uri), ref, force, why, recipe, root
        )
    except RegressionError as refusal:
        say_block(format_comparisons(refusal.comparisons))
        raise
    if as_json:
        say_json(promotion)
        return
    if promotion.comparisons:
        say_block(format_comparisons(promotion.comparisons))
    say(
        f"champion: {promotion.champion.ref}"
        + (f", previous: {promotion.previous.ref}" if promotion.previous else "")
    )


def holdout(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Folder of a dataset, or a root whose newest dataset is meant.", metavar="[DATASET]"
        ),
    ] = "",
    why: Why = "",
    recipe: options.Recipe = options.DEFAULT_RECIPE,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Show the hold-out on which `promote` compares, or choose another with DATASET.

    A new hold-out is measured as the recipe's `evaluate` says.
    """
    from pipelines.recipes.overrides import add_option, load
    from pipelines.registry import freeze_holdout, read_holdout

    settings = load(recipe, config, add_option(overrides, "--tracking", "tracking.uri", tracking or None))
    registry = open_existing(root, settings.tracking.uri)
    chosen: HoldOut | None
    if dataset:
        from pipelines.flows.promote import choose_holdout

        chosen = freeze_holdout(registry, choose_holdout(find_dataset(dataset), settings), why)
    else:
        chosen = read_holdout(registry)
    if as_json:
        say_json(chosen)
    elif chosen is None:
        say(
            "there is no hold-out yet; the first cascade that `diffbfr run` registers brings it, or choose "
            "one: `models holdout DATASET`"
        )
    else:
        metrics = ", ".join(f"{name} v{version}" for name, version in sorted(chosen.metrics.items()))
        metadata = vars(chosen.protocol) | {
            "content": chosen.protocol.dataset,
            "dataset": chosen.dataset,
            "metrics": metrics,
        }
        say_block(
            table(
                ("hold-out", chosen.protocol.digest), [(name, str(value)) for name, value in metadata.items()]
            )
        )


def rollback(
    name: Annotated[str, typer.Argument(help="Registered model.", metavar="NAME")] = "diffbfr-cascade",
    why: Why = "",
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Make the previous champion the champion again."""
    from pipelines.registry import rollback as swap_champions

    promotion = swap_champions(open_existing(root, tracking), name, why)
    if as_json:
        say_json(promotion)
    else:
        say(
            f"champion: {promotion.champion.ref}"
            + (f", previous: {promotion.previous.ref}" if promotion.previous else "")
        )


def fsck(
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Check every version: files, digests, signatures, a cascade's stages, aliases, orphans and the log."""
    from pipelines.registry import fsck as check
    from pipelines.registry import list_versions

    registry = open_existing(root, tracking)
    problems = check(registry)
    if as_json:
        say_json(problems)
    else:
        lines = [f"{it.ref}: {it.problem}; {it.advice}" for it in problems]
        say(*lines or [f"{len(list_versions(registry))} versions, nothing wrong"])
    if problems:
        raise QuarantineError(
            f"{len(problems)} findings in the registry of {root}; expected none; do what each line says"
        )


def gc(
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be removed.")] = False,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Remove versions of this root that no alias, cascade or record names, and orphaned files."""
    from pipelines.execution.artifact_store import ArtifactStore
    from pipelines.registry import collect_garbage

    store = ArtifactStore(root)
    removed = collect_garbage(open_existing(root, tracking), store.root, store.referenced_ids(), plan)
    if as_json:
        say_json(removed)
    else:
        say(*[f"{it.name}: {it.why}" for it in removed] or ["nothing to remove"])
