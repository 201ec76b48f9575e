"""What a finished run shows: gathers pictures, scores, curves, lineage and times from the artifacts into `report.html`."""

import sys
from datetime import UTC, datetime

from diffbfr.stages import STAGE_NAMES
from pipelines import storage
from pipelines.flows.journal import read_journal
from pipelines.flows.making import ARCHIVE, MIRROR
from pipelines.flows.run_report import StepReport
from pipelines.flows.workshop import Workshop
from pipelines.recipes import SCRATCH
from pipelines.report import LineageLink, ReportData, RestoredPhoto, StepLine, TrainingCurve, write_report

_NUM_PHOTOS = 6


def page_place(shop: Workshop) -> str:
    """Where the page of a root lies."""
    return storage.join(shop.store.root, "report.html")


def write_page(shop: Workshop, steps: tuple[StepReport, ...], seconds: float) -> str:
    """Write the page of a complete run and return its place."""
    from pipelines.steps.scores import read_evaluation

    recipe = shop.recipe
    counts = tuple((status, int(number)) for status, number in shop.facts("restore").items())
    data = ReportData(
        recipe=recipe.name,
        command=" ".join(["diffbfr", *sys.argv[1:]]),
        faces=recipe.data.faces,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=seconds,
        evaluation=read_evaluation(shop.folder("evaluate")),
        restored=_photos(shop),
        counts=counts,
        curves=tuple(TrainingCurve(name, _losses(shop, name)) for name in STAGE_NAMES),
        lineage=_lineage(shop),
        steps=tuple(StepLine(line.name, line.action, line.seconds, line.reason) for line in steps),
        notes=_notes(shop),
    )
    write_report(page_place(shop), data)
    return page_place(shop)


def _photos(shop: Workshop) -> tuple[RestoredPhoto, ...]:
    """Some photos of the sample archive, before and after; the input is enlarged smoothly to the output's size."""
    from diffbfr.images import decode, encode_png, resize
    from pipelines.manifest import read_ledger
    from pipelines.sources import open_source

    folder = shop.folder("restore")
    mirror = storage.join(folder, MIRROR)
    source = open_source(storage.join(folder, ARCHIVE), every_file=True)
    rows = {row.name: row for row in read_ledger(storage.join(mirror, "ledger.parquet"))}
    photos = []
    for ref in list(source.refs())[:_NUM_PHOTOS]:
        row = rows[ref.name]
        after = storage.read_bytes(storage.join(mirror, row.output))
        before = resize(decode(source.read(ref)).pixels, shop.recipe.data.hq_px, "bicubic")
        photos.append(RestoredPhoto(row.name, row.status, encode_png(before), after, row.message))
    return tuple(photos)


def _losses(shop: Workshop, name: str) -> tuple[tuple[int, float], ...]:
    posts = read_journal(storage.join(shop.folder(f"train-{name}"), "journal.json"))
    return tuple((post.samples, post.values["loss"]) for post in posts)


def _lineage(shop: Workshop) -> tuple[tuple[LineageLink, ...], ...]:
    """The chain from photos to cascade, a row for what stands side by side."""
    dataset, cascade = shop.facts("shard"), shop.facts("cascade")

    def stage(name: str) -> LineageLink:
        return LineageLink(f"diffbfr-{name}", cascade["stages"][name]["digest"], f"{shop.facts(f'train-{name}')['samples']:,} samples")

    rows: list[tuple[LineageLink, ...]] = []
    if "condition-irm1" in shop.steps:
        pictures = shop.facts("condition-irm1")["pictures"]
        rows = [(LineageLink("column", shop.steps["condition-irm1"].id, f"{pictures:,} pictures by irm1"),)]
    return (
        (LineageLink("photos", shop.photos_digest(), shop.recipe.data.faces),),
        (LineageLink("dataset", dataset["content_id"], f"{dataset['num_samples']:,} faces in {dataset['num_shards']} shards"),),
        (stage("irm1"), stage("tem")),
        *rows,
        (stage("irm2"),),
        (LineageLink("diffbfr-cascade", cascade["digest"], ", ".join(map(str, shop.facts("register").values()))),),
    )


def _notes(shop: Workshop) -> tuple[str, ...]:
    recipe = shop.recipe
    if recipe.init == SCRATCH:
        return ("The three stages started from nothing.",)
    return (
        f"The three stages started from the weights of {recipe.init} ({shop.initial_digest()[:12]}) and trained on from there; "
        "--set init=scratch starts from nothing.",
    )
