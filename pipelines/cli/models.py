"""`diffbfr models`: what is registered, where it comes from, and which cascade is in charge."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffbfr.errors import QuarantineError, UsageError
from diffbfr.packaged import FACES, RECORD, packaged_folder, packaged_names, read_card
from diffbfr.stages import StageName
from pipelines.cli import options
from pipelines.cli.data import find_dataset
from pipelines.cli.output import say, say_block, say_error, say_json, table

if TYPE_CHECKING:
    from pipelines.registry import HoldOut
    from pipelines.tracking.connection import Registry

models = typer.Typer(
    help=(
        "The model registry: list, show, lineage, import, assemble, holdout, promote, rollback, log, fsck, "
        "gc."
    ),
    no_args_is_help=True,
)

Ref = Annotated[
    str,
    typer.Argument(
        help="NAME@ALIAS or NAME@VERSION, e.g. diffbfr-cascade@candidate.", metavar="NAME@VERSION"
    ),
]

_STAGE_HELP = "NAME@ALIAS, NAME@VERSION, packaged, or a folder with the stage or a cascade."

Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.", metavar="TEXT")]


@models.command("list")
def list_models(
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """List every registered version, with its aliases."""
    from pipelines.registry import list_versions

    versions = list_versions(open_existing(root, tracking))
    if as_json:
        say_json(versions)
        return
    rows = [
        (version.ref, ", ".join(version.aliases) or "-", version.created, version.digest[:12])
        for version in versions
    ]
    say_block(
        table(("model", "alias", "created", "digest"), rows)
        if rows
        else "nothing is registered yet; `diffbfr run` registers what it trains"
    )


@models.command()
def show(
    ref: Ref,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Show one version: where its files are, and everything that was recorded of it.

    Of a cascade in the package, by its name, the model card or the record.
    """
    from pipelines.registry import get_version

    if ref in packaged_names():
        _show_packaged(ref, as_json)
        return
    if ref == FACES:
        raise UsageError(
            f"this package holds no cascade {FACES}; expected {' or '.join(packaged_names())}, or "
            "NAME@VERSION of the registry; take one of them"
        )
    version = get_version(open_existing(root, tracking), ref)
    if as_json:
        say_json(version)
        return
    metadata = {
        "model": version.ref,
        "aliases": ", ".join(version.aliases) or "-",
        "created": version.created,
        "digest": version.digest,
    }
    say_block(
        table(
            ("", ""),
            [
                *(metadata | {"source": version.source, "run": version.run_id}).items(),
                *sorted(version.tags.items()),
            ],
        ).lstrip()
    )


def _show_packaged(name: str, as_json: bool) -> None:
    """Print the model card of a cascade in the package, or its record where it has no card."""
    folder = packaged_folder(name)
    record = json.loads((folder / RECORD).read_text())
    if as_json:
        say_json({"folder": str(folder), "card": read_card(name), "record": record})
        return
    plain = [(field, it if isinstance(it, str) else json.dumps(it)) for field, it in record.items()]
    say_block(read_card(name) or table(("", ""), [("folder", str(folder)), *plain]).lstrip())


@models.command()
def lineage(
    ref: Ref,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every photo too; else they are only listed again.")
    ] = False,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Print the chain from a version back to the photos, with each link that differs from its record.

    Reads every file on the way.
    """
    from pipelines.execution.artifact_store import ArtifactStore
    from pipelines.flows.lineage import format_chain, trace

    chain = trace(open_existing(root, tracking), ArtifactStore(root), ref, deep)
    if as_json:
        say_json(chain)
    else:
        say_block(format_chain(chain))
    broken = [link.title for link in chain.all() if link.problems]
    if broken:
        raise QuarantineError(
            f"{len(broken)} links of {ref} are not what was recorded (first: {broken[0]}); see the lines "
            "with an !"
        )


@models.command("import")
def import_(
    family: Annotated[
        Literal["sr3", "difface"],
        typer.Argument(help="Whose checkpoint it is: sr3 or difface.", metavar="FAMILY", show_default=False),
    ],
    file: Annotated[
        Path, typer.Argument(help="The .pth as it was published.", metavar="FILE", show_default=False)
    ],
    stage: Annotated[
        Literal["irm1", "irm2", "tem"] | None,
        typer.Option("--stage", help="The stage expected; what the file is, if not given."),
    ] = None,
    accept_licence: Annotated[
        bool,
        typer.Option(
            "--accept-licence", help="Accept the checkpoint's licence, which is named; exit 2 without it."
        ),
    ] = False,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Import a public checkpoint as a registered stage: SR3 (IRM-1, IRM-2) or DifFace (TEM).

    Only tensors are read from the file, and no code is run. The licence goes into the weights, the registry,
    and every cascade and output made with them.
    """
    from diffbfr.importing.checkpoints import open_checkpoint
    from pipelines.flows.import_checkpoint import import_checkpoint
    from pipelines.tracking.connection import open_registry

    opened = open_checkpoint(file.expanduser(), family, stage)
    known = opened.checkpoint
    if not accept_licence:
        raise UsageError(
            f"{file} is {known.title}, licence {known.licence}. {known.terms} Expected --accept-licence; add "
            "it if your use is within these terms"
        )
    for line in (f"{known.title}: {known.licence}", known.terms):
        (say_error if as_json else say)(line)
    report = import_checkpoint(opened, open_registry(root, tracking), root)
    if as_json:
        say_json(report)
        return
    facts = {"model": report.model, "digest": report.digest, "folder": report.folder}
    say_block(table(("imported", known.title), list(facts.items())))
    say(*(f"note: {note}" for note in report.notes))
    say("train it further: --recipe paper", *(f"  --set {setting}" for setting in report.settings))


@models.command()
def assemble(
    irm1: Annotated[str, typer.Option("--irm1", help=_STAGE_HELP, metavar="STAGE", show_default=False)],
    irm2: Annotated[str, typer.Option("--irm2", help=_STAGE_HELP, metavar="STAGE", show_default=False)],
    tem: Annotated[str, typer.Option("--tem", help=_STAGE_HELP, metavar="STAGE", show_default=False)],
    few: Annotated[
        bool,
        typer.Option(
            "--few",
            help="Sample them with 4 + 2 + 2 evaluations, those of `diffbfr distill`, without training.",
        ),
    ] = False,
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Assemble and register a cascade of stages that exist, imported or trained, as the new candidate."""
    from pipelines.flows.assemble_cascade import assemble_cascade
    from pipelines.tracking.connection import open_registry

    names: dict[StageName, str] = {"irm1": irm1, "irm2": irm2, "tem": tem}
    made = assemble_cascade(names, open_registry(root, tracking), root, few=few)
    if as_json:
        say_json(made)
        return
    facts = [("model", made.model), ("digest", made.digest), ("folder", made.folder)]
    say_block(table(("assembled", ""), [*facts, *made.stages.items()]))
    say(*(f"licence: {licence}" for licence in made.licences))
    say(f"restore with it: diffbfr restore INPUT OUTPUT --model {made.model} --root {root}")


@models.command()
def promote(
    ref: Ref = "diffbfr-cascade@candidate",
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


@models.command()
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


@models.command()
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


@models.command("log")
def show_log(
    root: options.Root = options.DEFAULT_ROOT,
    tracking: options.Tracking = None,
    as_json: options.Json = False,
) -> None:
    """Print the audit log: who put which version in charge, and why.

    Exit code 4 if an entry is missing, or an alias is not where the log says.
    """
    from pipelines.registry import MODELS, list_actions, log_problems

    registry = open_existing(root, tracking)
    actions = list_actions(registry)
    problems: list[str] = []
    for name in MODELS:
        problems += [f"{name}: {problem}" for problem in log_problems(registry, name)]
    if as_json:
        say_json(actions)
    else:
        rows = [
            (it.when, it.user, it.action, it.outcome, it.before or "-", it.after or "-", it.why or "-")
            for it in actions
        ]
        say_block(
            table(("when", "who", "what", "", "from", "to", "why"), rows)
            if rows
            else "no version was ever put in charge"
        )
        for problem in problems:
            say(f"! {problem}")
    if problems:
        raise QuarantineError(
            f"the audit log is damaged ({problems[0]}); expected every entry, and the aliases where it puts "
            "them; see the lines with an !"
        )


@models.command()
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


@models.command()
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


def open_existing(root: str, tracking: str | None) -> "Registry":
    """The registry of a root; UsageError if there is none yet, instead of making an empty one."""
    from pipelines import storage
    from pipelines.tracking.connection import open_registry

    database = storage.join(root, "mlflow.db")
    if tracking is None and not storage.exists(database):
        raise UsageError(
            f"no registry at {database}; expected what `diffbfr run --root {root}` makes; correct --root, or "
            "name --tracking"
        )
    return open_registry(root, tracking)
