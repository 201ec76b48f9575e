"""`diffbfr restore`: restore an archive of photos into a mirror with a ledger."""

from typing import Annotated, Literal

import typer

from pipelines.cli import options
from pipelines.cli.cascades import pin
from pipelines.cli.output import say, say_block, say_json, table


def restore(
    source: Annotated[
        str,
        typer.Argument(
            help="Photos: a folder, zip, tar or file, or archives as 'a/*.zip' or '{00..99}.tar' (quoted).",
            metavar="INPUT",
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(help="New folder for the restored photos, or one to resume.", metavar="OUTPUT"),
    ],
    model: options.Model = options.PACKAGED,
    mode: Annotated[
        Literal["fast", "faithful"] | None, typer.Option("--mode", help="Few-step solvers, or Algorithm 1.")
    ] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The photos are square face crops in the FFHQ frame.")
    ] = False,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            min=1,
            help="Restorations of each face: folders sample-0, sample-1 .. and spread, where they differ.",
        ),
    ] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed gives other details.")] = None,
    max_bad: Annotated[
        int, typer.Option("--max-bad", help="Exit 4 if more inputs than this cannot be read.")
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Count skipped inputs, which are no photos, for --max-bad too.")
    ] = False,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Restore an archive: one ledger row for each input.

    The same command resumes an interrupted run, and does nothing when nothing is left.
    """
    from pipelines.cluster import Cluster
    from pipelines.flows.restore_archive import RestoreOptions, require_clean, restore_archive
    from pipelines.flows.restore_page import write_restore_page
    from pipelines.recipes.overrides import load

    recipe = load(options.DEFAULT_RECIPE, config, tuple(overrides or ()))
    chosen = RestoreOptions(
        aligned=aligned,
        mode=mode or recipe.sampling.mode,
        seed=recipe.restore.seed if seed is None else seed,
        unit_size=recipe.restore.unit_size,
        samples=samples,
    )
    cascade = pin(model, root, recipe.tracking.uri)
    with Cluster(recipe.cluster) as cluster:
        report = restore_archive(
            source, output, cascade.stage_to(_staging_place(output, cascade.digest)), chosen, cluster
        )
    page = write_restore_page(report)
    if as_json:
        say_json(
            {
                "output": report.output,
                "report": page,
                "ledger": report.ledger,
                "model": report.model_digest,
                "seconds": report.seconds,
                "counts": report.counts,
            }
        )
    else:
        say_block(table(("status", "inputs"), list(vars(report.counts).items())))
        say(f"ledger: {report.ledger}")
        say(f"report: {page}")
    require_clean(report, max_bad, strict)


def _staging_place(output: str, digest: str) -> str:
    """Address of the cascade's copy for workers on other machines, inside the output folder."""
    from pipelines import storage
    from pipelines.restoration.outcomes import CONTROL

    return storage.join(output, CONTROL, f"cascade-{digest[:12]}")
