"""The options that several commands share."""

from typing import Annotated

import typer

from diffbfr.packaged import default_cascade
from diffbfr.stages import PACKAGED as PACKAGED

Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="smoke (minutes), small, faces128 (hours), paper (Table 6), or tiny (the packaged cascade).",
    ),
]
Faces = Annotated[
    str | None,
    typer.Option(
        "--faces",
        help="Folder, zip, tar or file of photos, or several archives as 'photos/*.zip' (quoted), "
        "here or on s3://; "
        "synthetic:count=..,seed=..,px=..",
        metavar="URI",
    ),
]
ModelRef = Annotated[
    str,
    typer.Argument(
        help="NAME@ALIAS or NAME@VERSION, e.g. diffbfr-cascade@candidate.", metavar="NAME@VERSION"
    ),
]
Root = Annotated[
    str,
    typer.Option(
        "--root", help="Where everything that is made goes: a folder or s3://bucket/prefix.", metavar="URI"
    ),
]
Config = Annotated[
    str | None, typer.Option("--config", help="YAML, TOML or JSON file of settings.", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one setting, e.g. data.variants=4; may be repeated. docs/reference.md lists all.",
        metavar="PATH=VALUE",
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what would run, and why.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="NAME@ALIAS, NAME@VERSION, a cascade's folder, or packaged.", metavar="MODEL"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object instead of a table.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking", help="MLflow server or database; SQLite under the root if not given.", metavar="URI"
    ),
]

DEFAULT_MODEL = default_cascade()
DEFAULT_RECIPE = "smoke"
DEFAULT_ROOT = "runs"
