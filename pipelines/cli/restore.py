"""`diffbfr restore`: restore an archive of photos into a mirror with a ledger."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffbfr.documents import abridged
from diffbfr.errors import UsageError
from diffbfr.stages import PAPER_FIDELITY
from pipelines.cli import options
from pipelines.cli.cascades import pin
from pipelines.cli.output import say, say_block, say_json, table

if TYPE_CHECKING:
    from pipelines.flows.restore_archive import RestoreOptions
    from pipelines.restoration.request import PhotoSettings
    from pipelines.sources.weights_ref import WeightsRef

_NUM_SHOWN = 20
_WHOLE = "Whole photos"
_AUTO = "auto"


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
        typer.Argument(
            help="New folder for the restored photos, or one to resume.", metavar="OUTPUT", show_default=False
        ),
    ] = "",
    model: options.Model = options.DEFAULT_MODEL,
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
            help="Restorations of each photo: folders sample-0, sample-1 .. and spread, where they differ.",
        ),
    ] = 1,
    file_format: Annotated[
        Literal["png", "jpeg", "webp"] | None,
        typer.Option(
            "--format", help="Format of all outputs; each input's own if not given.", rich_help_panel=_WHOLE
        ),
    ] = None,
    fidelity: Annotated[
        str,
        typer.Option(
            "--fidelity",
            help="1 stays nearest to the photo, 0 draws most anew, 0.5 is the paper's; auto: by the detail "
            "that each face kept.",
            metavar="0..1|auto",
            rich_help_panel=_WHOLE,
        ),
    ] = str(PAPER_FIDELITY),
    strength: Annotated[
        float,
        typer.Option(
            "--strength",
            min=0.0,
            max=1.0,
            help="Blend: 0 is the photo, 1 the restored face.",
            rich_help_panel=_WHOLE,
        ),
    ] = 1.0,
    upscale: Annotated[
        Literal["1", "2", "4"],
        typer.Option("--upscale", help="Enlarge the photos.", rich_help_panel=_WHOLE),
    ] = "1",
    upscaler: Annotated[
        Literal["bicubic", "realesrgan"],
        typer.Option(
            "--upscaler",
            help="How the background is enlarged; realesrgan needs the extra packages diffbfr[upscale].",
            rich_help_panel=_WHOLE,
        ),
    ] = "bicubic",
    min_face: Annotated[
        float,
        typer.Option(
            "--min-face",
            help="Pixels between the eyes below which a face is left alone.",
            rich_help_panel=_WHOLE,
        ),
    ] = 8.0,
    any_size: Annotated[
        bool,
        typer.Option(
            "--any-size",
            help="Restore faces too that have more pixels than the cascade makes.",
            rich_help_panel=_WHOLE,
        ),
    ] = False,
    only_center: Annotated[
        bool,
        typer.Option("--only-center", help="Only the face nearest to the centre.", rich_help_panel=_WHOLE),
    ] = False,
    only_largest: Annotated[
        bool, typer.Option("--only-largest", help="Only the largest face.", rich_help_panel=_WHOLE)
    ] = False,
    keep_metadata: Annotated[
        bool,
        typer.Option(
            "--keep-metadata",
            help="Keep all EXIF, the position too; date and camera stay anyway.",
            rich_help_panel=_WHOLE,
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed gives other details.")] = None,
    max_bad: Annotated[
        int, typer.Option("--max-bad", help="Exit 4 if more inputs than this cannot be read.")
    ] = 0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Only compare OUTPUT, and its INPUT, with what was restored; exit 1 if a file differs.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Count skipped inputs, which are no photos, for --max-bad too.")
    ] = False,
    root: options.Root = options.DEFAULT_ROOT,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """Restore the faces of an archive of photos: one ledger row for each input.

    The same command resumes an interrupted run, and does nothing when nothing is left. After `diffbfr restore
    --verify OUTPUT` it makes again what differed.
    """
    if verify:
        _verify(source, output, config, overrides, as_json)
        return
    if not output:
        raise UsageError(
            "restore has no OUTPUT; expected INPUT and OUTPUT; name a folder for the restored photos"
        )
    from pipelines import storage
    from pipelines.cluster import Cluster
    from pipelines.flows.restore_archive import RestoreOptions, require_clean, restore_archive
    from pipelines.flows.restore_page import write_restore_page
    from pipelines.recipes.overrides import add_option, load
    from pipelines.restoration.request import CONTROL

    changes = add_option(overrides, "--mode", "sampling.mode", mode)
    changes = add_option(changes, "--seed", "restore.seed", seed)
    recipe = load(options.DEFAULT_RECIPE, config, changes)
    settings = {
        "min_face": min_face,
        "any_size": any_size,
        "only": "center" if only_center else "largest" if only_largest else "",
        **_fidelity(fidelity),
        "strength": strength,
        "upscale": int(upscale),
        "upscaler": upscaler,
        "file_format": file_format or "",
        "keep_metadata": keep_metadata,
    }
    if only_center and only_largest:
        raise UsageError("restore has --only-center and --only-largest; expected one of the two at most")
    cascade = pin(model, root, recipe.tracking.uri)
    photos, detector = (None, None) if aligned else _whole(settings)
    if aligned:
        _check_plain(settings)
    chosen = RestoreOptions(
        aligned=aligned,
        mode=recipe.sampling.mode,
        seed=recipe.restore.seed,
        unit_size=recipe.restore.unit_size,
        batch_faces=recipe.restore.batch_faces,
        samples=samples,
        photos=photos,
        detector=detector,
        identity=None if aligned else _identity(),
    )
    with Cluster(recipe.cluster) as cluster:
        if cluster.is_joined:
            storage.check_writable(output, "name another output")
            cascade = cascade.stage_to(storage.join(output, CONTROL, f"cascade-{cascade.digest[:12]}"))
            chosen = _staged(chosen, storage.join(output, CONTROL, "faces"))
        report = restore_archive(source, output, cascade, chosen, cluster)
    page = write_restore_page(report)
    if as_json:
        say_json(
            {
                "output": report.output,
                "report": page,
                "ledger": report.ledger,
                "model": report.model_digest,
                "licences": report.licences,
                "seconds": report.seconds,
                "counts": report.counts,
            }
        )
    else:
        say_block(table(("status", "inputs"), list(vars(report.counts).items())))
        if report.counts.no_face and not (report.counts.restored or report.counts.failed):
            say("no face was restored: none was found, or all were left alone; faces.parquet says why")
        say(f"ledger: {report.ledger}")
        if page is not None:
            say(f"report: {page}")
        for licence in report.licences:
            say(f"licence of the model: {licence}")
    require_clean(report, max_bad, strict)


def _fidelity(text: str) -> dict[str, Any]:
    """The settings of --fidelity."""
    if text == _AUTO:
        return {"adaptive": True}
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--fidelity is {abridged(text)}; expected a number from 0 to 1, or {_AUTO}")
    return {"fidelity": value}


def _whole(settings: dict[str, Any]) -> "tuple[PhotoSettings, WeightsRef]":
    """The settings for whole photos, and the face detector of this machine.

    It is loaded once here, so that no photo is read in vain.
    """
    from diffbfr.faces.weights import load_detector
    from pipelines.flows.setup_faces import detector_weights
    from pipelines.restoration.enlarging import upscaler_digest
    from pipelines.restoration.request import PhotoSettings
    from pipelines.sources.weights_ref import pin_weights

    detector = pin_weights(detector_weights())
    load_detector(Path(detector.place))
    digest = upscaler_digest(settings["upscaler"])
    return PhotoSettings(detector.sha256, upscaler_sha256=digest, **settings), detector


def _identity() -> "WeightsRef | None":
    """The face network of this machine; None if it is not set up."""
    from pipelines.packages.metric_weights import FACE_RESNET
    from pipelines.packages.weights import find_weights
    from pipelines.sources.weights_ref import pin_weights

    found = find_weights(FACE_RESNET.name)
    return None if found is None else pin_weights(found, "face network")


def _staged(chosen: "RestoreOptions", place: str) -> "RestoreOptions":
    """The options with the weights where the workers of other machines find them."""
    detector = None if chosen.detector is None else chosen.detector.stage_to(place)
    identity = None if chosen.identity is None else chosen.identity.stage_to(place)
    return replace(chosen, detector=detector, identity=identity)


def _check_plain(settings: dict[str, Any]) -> None:
    """Refuse options for whole photos beside --aligned."""
    from pipelines.restoration.request import PhotoSettings

    if PhotoSettings("", **settings) != PhotoSettings(""):
        raise UsageError(
            "restore has --aligned and an option for whole photos; expected one of the two; leave --aligned "
            "out, or that option"
        )


def _verify(source: str, output: str, config: str | None, overrides: list[str] | None, as_json: bool) -> None:
    """Verify a restored archive, which is the only folder named, or the second one after its input."""
    from pipelines.cluster import Cluster
    from pipelines.flows.restore_verify import require_same, verify_restoration
    from pipelines.recipes.overrides import load

    recipe = load(options.DEFAULT_RECIPE, config, tuple(overrides or ()))
    with Cluster(recipe.cluster) as cluster:
        report = verify_restoration(output or source, cluster, source if output else "")
    if as_json:
        say_json(report)
    else:
        counts = [("inputs", report.inputs), ("outputs", report.outputs), ("bytes", report.bytes_read)]
        say_block(table(("read again", ""), [*counts, ("differ", report.num_problems)]))
        for problem in report.problems[:_NUM_SHOWN]:
            say(f"{problem.path}: {problem.message}")
    require_same(report)
