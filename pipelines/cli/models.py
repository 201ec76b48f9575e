"""`diffbfr models`: what is registered, where it comes from, and which cascade is in charge."""

import json
from typing import Annotated

import typer

from diffbfr.errors import QuarantineError, UsageError
from diffbfr.packaged import FACES, RECORD, packaged_folder, packaged_names, read_card
from pipelines.cli import options
from pipelines.cli.add_models import assemble, import_
from pipelines.cli.cascades import open_existing
from pipelines.cli.change_models import fsck, gc, holdout, promote, rollback
from pipelines.cli.output import say, say_block, say_json, table


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


def show(
    ref: options.ModelRef,
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


def lineage(
    ref: options.ModelRef,
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


models = typer.Typer(
    help=(
        "The model registry: list, show, lineage, import, assemble, holdout, promote, rollback, log, fsck, "
        "gc."
    ),
    no_args_is_help=True,
)
for function, name in (
    (list_models, "list"),
    (show, "show"),
    (lineage, "lineage"),
    (import_, "import"),
    (assemble, "assemble"),
    (promote, "promote"),
    (holdout, "holdout"),
    (rollback, "rollback"),
    (show_log, "log"),
    (fsck, "fsck"),
    (gc, "gc"),
):
    models.command(name)(function)
