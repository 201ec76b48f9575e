"""`diffbfr doctor`: check this machine, and every node of a cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from diffbfr.errors import DiffBFRError
from pipelines.cli import options
from pipelines.cli.output import say_block, say_json, table

if TYPE_CHECKING:
    from pipelines.flows.doctor import Check

Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="A Ray cluster to check on every node: host:port, or auto.", metavar="ADDRESS"
    ),
]

_NUM_PLACES = 3


def doctor(
    root: options.Root = options.DEFAULT_ROOT,
    address: Address = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Check this machine, and every node of a cluster: versions, storage, tracking, clocks, space, devices.

    Exits with 1 if something must be mended; each such line says what to do.
    """
    from pipelines.cluster import Cluster
    from pipelines.flows.doctor import doctor as examine
    from pipelines.recipes.overrides import add_option, load

    settings = add_option(overrides, "--address", "cluster.address", address or None)
    recipe = load(options.DEFAULT_RECIPE, config, settings)
    with Cluster(recipe.cluster) as cluster:
        checks = examine(root, recipe.tracking.uri, cluster)
    if as_json:
        say_json(checks)
    else:
        say_block(table(("where", "what", "", "found"), _rows(checks)))
    bad = [check for check in checks if not check.ok]
    if bad:
        raise DiffBFRError(
            f"{len(bad)} of {len(checks)} checks failed (first: {bad[0].where} {bad[0].what}: "
            f"{bad[0].detail}); mend what the table marks BAD"
        )


def _rows(checks: "Sequence[Check]") -> list[tuple[str, str, str, str]]:
    """Few lines: the packages of a process that are fit are one, and so are equal findings of several."""
    findings: dict[tuple[str, str, str], list[str]] = {}
    for what, ok, detail, where in [*_fit_packages(checks), *_others(checks)]:
        findings.setdefault((what, ok, detail), []).append(where)
    return [(_places(where), what, ok, detail) for (what, ok, detail), where in findings.items()]


def _fit_packages(checks: "Sequence[Check]") -> list[tuple[str, str, str, str]]:
    fit: dict[str, list[str]] = {}
    for check in checks:
        if _is_plain(check) and check.detail != "not installed":
            fit.setdefault(check.where, []).append(f"{check.what} {check.detail}")
    return [("versions", "ok", ", ".join(packages), where) for where, packages in fit.items()]


def _others(checks: "Sequence[Check]") -> list[tuple[str, str, str, str]]:
    return [
        (check.what, "ok" if check.ok else "BAD", check.detail, check.where)
        for check in checks
        if not _is_plain(check)
    ]


def _places(places: list[str]) -> str:
    more = len(places) - _NUM_PLACES
    return ", ".join(places[:_NUM_PLACES]) + (f" and {more} more" if more > 0 else "")


def _is_plain(check: "Check") -> bool:
    """True for a package that is fit and of which nothing more is to be said."""
    return check.ok and check.is_package and ";" not in check.detail
