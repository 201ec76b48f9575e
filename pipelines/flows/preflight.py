"""Before a run begins: is there what its last step needs? The checks are those of `diffbfr doctor`.

The output is tried by the command itself, and the files of metrics are found when the steps are listed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

from diffbfr.errors import UsageError, one_line
from pipelines.execution.decision import Decision
from pipelines.flows.places import require_places
from pipelines.flows.register import REGISTER
from pipelines.steps.context import RunContext
from pipelines.steps.evaluate import EVALUATE, identity_weights, squeezenet_weights
from pipelines.steps.shard import SHARD


def check_run(ctx: RunContext, decisions: Sequence[Decision]) -> None:
    """Raise what the steps that will run would fail with hours later: places, registry, weights of metrics.

    Local places cost a few milliseconds, a registry that is a server one round trip, and a cluster that is
    joined a task on each node.
    """
    waiting = {it.step for it in decisions if it.action == "RUN"}
    if REGISTER.name in waiting:
        from pipelines.tracking.checks import check_ready
        from pipelines.tracking.connection import open_registry

        tracking = ctx.recipe.tracking
        check_ready(open_registry(ctx.store.root, tracking.uri, tracking.experiment))
    if EVALUATE.name in waiting:
        _load_metrics(ctx)
    if waiting and ctx.cluster.is_joined:
        _check_nodes(ctx, reads_photos=SHARD.name in waiting)


def _load_metrics(ctx: RunContext) -> None:
    """UsageError for a file that holds no weights of its network; nothing is loaded without such a file."""
    config = ctx.recipe.evaluate
    if path := squeezenet_weights(config.squeezenet):
        from diffbfr.metrics.squeezenet import load_squeezenet

        _load(load_squeezenet, path, "SqueezeNet 1.0")
    if path := identity_weights(config.identity):
        from diffbfr.metrics.identity import load_mobilefacenet

        _load(load_mobilefacenet, path, "MobileFaceNet")


def _load(load: Callable[[Path], object], path: str, what: str) -> None:
    try:
        load(Path(path))
    except (OSError, ValueError, BadZipFile, UnpicklingError) as error:
        raise UsageError(
            f"{path} cannot be read as weights ({one_line(error)}); expected those of {what} as .npz; name "
            "another file, or leave the metric out"
        ) from error


def _check_nodes(ctx: RunContext, reads_photos: bool) -> None:
    inputs = []
    if reads_photos:
        from pipelines.sources import open_source

        source = open_source(ctx.recipe.data.faces)
        inputs.append((source, source.refs()))
    require_places(ctx.cluster, ctx.store.root, inputs)
