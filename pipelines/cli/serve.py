"""`diffbfr app`: a page on this machine where photos are dropped and restored."""

import contextlib
from typing import Annotated

import typer

from pipelines.cli import options
from pipelines.cli.cascades import pin
from pipelines.cli.output import say, say_error

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
_PACKAGED_NOTE = (
    "This is the packaged cascade, which learned from drawn faces: of a real face it keeps the colours, and "
    "not the likeness. Without --model the page has the packaged cascade of real faces."
)


def serve(
    model: options.Model = options.DEFAULT_MODEL,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen at; another than this machine's own opens the page to others."
        ),
    ] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 for any free one.")
    ] = DEFAULT_PORT,
    root: options.Root = options.DEFAULT_ROOT,
) -> None:
    """Open a page on this machine: drop a photo, compare before and after, download.

    Results are those of `diffbfr restore`. They are held in memory for 15 minutes, and nothing is written.
    """
    from pipelines.flows.setup_faces import detector_weights
    from pipelines.recipes.overrides import load
    from pipelines.serving.hosts import is_loopback
    from pipelines.serving.restorer import Restorer, ServedCascade
    from pipelines.serving.server import serve as serve_page
    from pipelines.sources.weights_ref import pin_weights

    recipe = load(options.DEFAULT_RECIPE, None, ())
    detector = pin_weights(detector_weights())
    served = ServedCascade(
        pin(model, root, recipe.tracking.uri),
        detector.fetch(),
        detector.sha256,
        recipe.sampling.mode,
        recipe.restore.seed,
        note=_PACKAGED_NOTE if model == options.PACKAGED else "",
    )
    if not is_loopback(host):
        say_error(
            f"diffbfr: --host {host} opens the page to everybody who reaches this machine, without password "
            "and encryption; leave it out to keep the page to this machine"
        )
    with contextlib.suppress(KeyboardInterrupt):  # the way in which it is meant to end
        serve_page(
            lambda: Restorer(served), host, port, lambda address: say(f"open {address} (Ctrl-C ends it)")
        )
