"""The report page of a finished run, `report.html`, from the images, scores and records of its artifacts."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from diffbfr.stages import STAGE_NAMES, StageName
from pipelines import storage
from pipelines.execution.run_report import StepReport
from pipelines.flows.restore_samples import ARCHIVE, MIRROR
from pipelines.recipes.recipe import SCRATCH
from pipelines.report import LineageLink, ReportData, RestoredPhoto, StepLine, TrainingCurve, write_report
from pipelines.steps.context import RunContext
from pipelines.tracking.metrics_log import read_metrics_log

_NUM_PHOTOS = 6


def page_place(ctx: RunContext) -> str:
    """Address of the page of a root."""
    return storage.join(ctx.store.root, "report.html")


def write_page(ctx: RunContext, steps: tuple[StepReport, ...], seconds: float) -> str:
    """Write the page of a complete run and return its address."""
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
    """Some photos of the sample archive, before (bicubic to the output's size) and after."""
    from pipelines.dataset.manifest import read_ledger
    from pipelines.sources import open_source
    from pipelines.sources.sandboxed_images import enlarged_png

    folder = ctx.artifact_dir("restore")
    mirror = storage.join(folder, MIRROR)
    source = open_source(storage.join(folder, ARCHIVE), every_file=True)
    rows = {row.name: row for row in read_ledger(storage.join(mirror, "ledger.parquet"))}
    photos = []
    for ref in list(source.refs())[:_NUM_PHOTOS]:
        row = rows[ref.name]
        after = storage.read_bytes(storage.join(mirror, row.output))
        before = enlarged_png(source.read(ref), ctx.recipe.data.hq_px)
        photos.append(RestoredPhoto(row.name, row.status, before, after, row.message))
    return tuple(photos)


def _losses(ctx: RunContext, name: str) -> tuple[tuple[int, float], ...]:
    records = read_metrics_log(storage.join(ctx.artifact_dir(f"train-{name}"), "metrics.json"))
    return tuple((record.samples, record.values["loss"]) for record in records)


def _lineage(ctx: RunContext) -> tuple[tuple[LineageLink, ...], ...]:
    """The tiers of the lineage from photos to cascade; links of one tier do not depend on each other."""
    dataset = ctx.metadata("shard")
    cascade = ctx.metadata("cascade")

    def stage(name: str) -> LineageLink:
        samples = ctx.metadata(f"train-{name}")["samples"]
        return LineageLink(f"diffbfr-{name}", cascade["stages"][name]["digest"], f"{samples:,} samples")

    column: list[tuple[LineageLink, ...]] = []
    if "condition-irm1" in ctx.steps:
        images = ctx.metadata("condition-irm1")["images"]
        column = [(LineageLink("column", ctx.steps["condition-irm1"].id, f"{images:,} images by irm1"),)]
    counts = f"{dataset['num_samples']:,} faces in {dataset['num_shards']} shards"
    versions = ", ".join(map(str, ctx.metadata("register").values()))
    return (
        (LineageLink("photos", ctx.photos_digest(), ctx.recipe.data.faces),),
        (LineageLink("dataset", dataset["content_id"], counts),),
        (stage("irm1"), stage("tem")),
        *column,
        (stage("irm2"),),
        (LineageLink("diffbfr-cascade", cascade["digest"], versions),),
    )


def _notes(ctx: RunContext) -> tuple[str, ...]:
    """Where the stages started from, and the terms of weights that others trained."""
    starts: dict[str, list[StageName]] = {}
    for name in STAGE_NAMES:
        starts.setdefault(ctx.recipe.init_of(name), []).append(name)
    notes = [_start_note(ctx, init, names) for init, names in starts.items()]
    origins = ctx.metadata("cascade").get("origins", {})
    for name, origin in origins.items():
        notes.append(f"{name} began as {origin['source']} ({origin['licence']}). {origin['terms']}")
    return tuple(notes)


def _start_note(ctx: RunContext, init: str, names: Sequence[StageName]) -> str:
    who = "The three stages" if len(names) == len(STAGE_NAMES) else " and ".join(names)
    if init == SCRATCH:
        return f"{who} started from nothing."
    digest = ctx.initial_digest(None if init == ctx.recipe.init else names[0])
    setting = "init" if init == ctx.recipe.init else f"{names[0]}.init"
    return (
        f"{who} started from the weights of {init} ({digest[:12]}) and trained on from there; "
        f"--set {setting}=scratch starts from nothing."
    )
