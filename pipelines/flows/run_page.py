"""What a finished run shows: gathers pictures, scores, curves, lineage and times from the artifacts into
`report.html`.
"""

import sys
from datetime import UTC, datetime

from diffbfr.stages import STAGE_NAMES
from pipelines import storage
from pipelines.execution.run_report import StepReport
from pipelines.flows.restore_samples import ARCHIVE, MIRROR
from pipelines.recipes.recipe import SCRATCH
from pipelines.report import LineageLink, ReportData, RestoredPhoto, StepLine, TrainingCurve, write_report
from pipelines.steps.context import RunContext
from pipelines.tracking.metrics_log import read_metrics_log

_NUM_PHOTOS = 6


def page_place(ctx: RunContext) -> str:
    """Where the page of a root lies."""
    return storage.join(ctx.store.root, "report.html")


def write_page(ctx: RunContext, steps: tuple[StepReport, ...], seconds: float) -> str:
    """Write the page of a complete run and return its place."""
    from pipelines.evaluation.scores import read_evaluation

    recipe = ctx.recipe
    counts = tuple((status, int(number)) for status, number in ctx.metadata("restore").items())
    data = ReportData(
        recipe=recipe.name,
        command=" ".join(["diffbfr", *sys.argv[1:]]),
        faces=recipe.data.faces,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=seconds,
        evaluation=read_evaluation(ctx.artifact_dir("evaluate")),
        restored=_photos(ctx),
        counts=counts,
        curves=tuple(TrainingCurve(name, _losses(ctx, name)) for name in STAGE_NAMES),
        lineage=_lineage(ctx),
        steps=tuple(StepLine(line.name, line.action, line.seconds, line.reason) for line in steps),
        notes=_notes(ctx),
    )
    write_report(page_place(ctx), data)
    return page_place(ctx)


def _photos(ctx: RunContext) -> tuple[RestoredPhoto, ...]:
    """Some photos of the sample archive, before and after; the input is enlarged smoothly to the output's
    size.
    """
    from diffbfr.images import decode, encode_png, resize
    from pipelines.dataset.manifest import read_ledger
    from pipelines.sources import open_source

    folder = ctx.artifact_dir("restore")
    mirror = storage.join(folder, MIRROR)
    source = open_source(storage.join(folder, ARCHIVE), every_file=True)
    rows = {row.name: row for row in read_ledger(storage.join(mirror, "ledger.parquet"))}
    photos = []
    for ref in list(source.refs())[:_NUM_PHOTOS]:
        row = rows[ref.name]
        after = storage.read_bytes(storage.join(mirror, row.output))
        before = resize(decode(source.read(ref)).pixels, ctx.recipe.data.hq_px, "bicubic")
        photos.append(RestoredPhoto(row.name, row.status, encode_png(before), after, row.message))
    return tuple(photos)


def _losses(ctx: RunContext, name: str) -> tuple[tuple[int, float], ...]:
    posts = read_metrics_log(storage.join(ctx.artifact_dir(f"train-{name}"), "metrics.json"))
    return tuple((post.samples, post.values["loss"]) for post in posts)


def _lineage(ctx: RunContext) -> tuple[tuple[LineageLink, ...], ...]:
    """The chain from photos to cascade, a row for what stands side by side."""
    dataset, cascade = ctx.metadata("shard"), ctx.metadata("cascade")

    def stage(name: str) -> LineageLink:
        return LineageLink(
            f"diffbfr-{name}",
            cascade["stages"][name]["digest"],
            f"{ctx.metadata(f'train-{name}')['samples']:,} samples",
        )

    rows: list[tuple[LineageLink, ...]] = []
    if "condition-irm1" in ctx.steps:
        pictures = ctx.metadata("condition-irm1")["pictures"]
        rows = [(LineageLink("column", ctx.steps["condition-irm1"].id, f"{pictures:,} pictures by irm1"),)]
    return (
        (LineageLink("photos", ctx.photos_digest(), ctx.recipe.data.faces),),
        (
            LineageLink(
                "dataset",
                dataset["content_id"],
                f"{dataset['num_samples']:,} faces in {dataset['num_shards']} shards",
            ),
        ),
        (stage("irm1"), stage("tem")),
        *rows,
        (stage("irm2"),),
        (
            LineageLink(
                "diffbfr-cascade", cascade["digest"], ", ".join(map(str, ctx.metadata("register").values()))
            ),
        ),
    )


def _notes(ctx: RunContext) -> tuple[str, ...]:
    recipe = ctx.recipe
    if recipe.init == SCRATCH:
        return ("The three stages started from nothing.",)
    return (
        f"The three stages started from the weights of {recipe.init} ({ctx.initial_digest()[:12]}) and "
        "trained on from there; "
        "--set init=scratch starts from nothing.",
    )
