"""`diffbfr data`: what a dataset holds."""

import dataclasses
from typing import Annotated

import typer

from diffbfr.errors import UsageError
from pipelines.cli import options
from pipelines.cli.output import say, say_json, table

data = typer.Typer(help="Datasets: show.", no_args_is_help=True)


@data.callback()
def _group() -> None:
    """Keep `show` a command of its own while it is the only one."""


@data.command()
def show(
    dataset: Annotated[str, typer.Argument(help="Folder of a dataset, or a root whose newest dataset is meant.", metavar="DATASET")],
    as_json: options.Json = False,
) -> None:
    """Count what is in a dataset: faces, splits, variants, columns, refused photos."""
    from pipelines.manifest import read_columns, read_info

    folder = _find(dataset)
    info, columns = read_info(folder), read_columns(folder)
    if as_json:
        say_json({"folder": folder, **dataclasses.asdict(info), "columns": columns})
        return
    rows = [
        ("folder", folder),
        ("source", info.source),
        ("faces", f"{info.num_samples} in {info.num_shards} shards (train {info.num_train}, val {info.num_val}, test {info.num_test})"),
        ("refused", str(info.num_quarantined)),
        ("sizes", f"{info.lq_px} -> {info.hq_px} px, {info.variants} variants each"),
        ("columns", ", ".join(f"{column.column} ({len(column.names)} files a face)" for column in columns)),
        ("content", info.content_id),
        ("archive", info.archive_id),
    ]
    say(table(("dataset", ""), rows))


def _find(place: str) -> str:
    from pipelines import storage
    from pipelines.artifacts import ArtifactStore
    from pipelines.manifest import DATASET_RECORD

    if storage.exists(storage.join(place, DATASET_RECORD)):
        return storage.absolute(place)
    store = ArtifactStore(place)
    newest = store.latest("shard")
    if newest is None:
        raise UsageError(f"{place} holds no {DATASET_RECORD} and no artifacts/shard; expected a dataset or a root; run `diffbfr shard`")
    return store.folder(newest.identity)
