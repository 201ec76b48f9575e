"""`diffbfr setup`: get what does not come with the package."""

from typing import Annotated

import typer

from pipelines.cli import options
from pipelines.cli.output import say, say_json, table

setup = typer.Typer(help="Get what does not come with the package.", no_args_is_help=True)


@setup.callback()
def _group() -> None:
    """Get what does not come with the package."""


@setup.command()
def faces(
    file: Annotated[
        str | None,
        typer.Option(
            "--from", help="YuNet as .onnx, or the wheel of facenet-pytorch with MTCNN.", metavar="FILE"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Get a face detector for whole photos: YuNet from its address, else MTCNN from the package index.

    Both have pinned digests. --from takes a file that is here already.
    """
    from pipelines.flows.setup_faces import setup_from_file, setup_from_network

    installed = setup_from_file(file) if file else setup_from_network()
    facts = {
        "detector": str(installed.path),
        "from": installed.source,
        "licence": installed.licence,
    }
    if as_json:
        say_json({**facts, "notes": installed.notes})
        return
    say(table(("setup faces", ""), list(facts.items())))
    for note in installed.notes:
        say(note)
