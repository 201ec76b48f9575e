"""`diffbfr doctor`: check this machine."""

from diffbfr.errors import DiffBFRError
from pipelines.cli import options
from pipelines.cli.output import say_block, say_json, table


def doctor(
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Check this machine: versions, storage, tracking, a worker."""
    from pipelines.cluster import Cluster
    from pipelines.flows.doctor import doctor as examine
    from pipelines.recipes.overrides import load

    recipe = load(options.DEFAULT_RECIPE, config, tuple(overrides or ()))
    with Cluster(recipe.cluster) as cluster:
        checks = examine(root, recipe.tracking.uri, cluster)
    if as_json:
        say_json(checks)
    else:
        say_block(
            table(
                ("where", "what", "", "found"),
                [(c.where, c.what, "ok" if c.ok else "BAD", c.detail) for c in checks],
            )
        )
    bad = [check for check in checks if not check.ok]
    if bad:
        raise DiffBFRError(
            f"{len(bad)} of {len(checks)} checks failed (first: {bad[0].where} {bad[0].what}: "
            f"{bad[0].detail})"
        )
