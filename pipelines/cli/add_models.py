"""`diffbfr models import` and `assemble`: cascades of stages that were not trained here."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffbfr.errors import UsageError
from diffbfr.stages import StageName
from pipelines.cli import options
from pipelines.cli.output import say, say_block, say_error, say_json, table

_STAGE_HELP = "NAME@ALIAS, NAME@VERSION, packaged, or a folder with the stage or a cascade."


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
