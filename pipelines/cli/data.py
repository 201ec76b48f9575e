"""`diffbfr data`: show a dataset, verify it, retry its quarantined photos, list its checksums."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffbfr.errors import DiffBFRError, UsageError
from pipelines.cli import options
from pipelines.cli.output import say, say_block, say_json, table

if TYPE_CHECKING:
    from diffbfr.degradation import DegradationSpec
    from diffbfr.shards import DatasetInfo
    from pipelines.dataset.near_duplicates import NearDuplicates
    from pipelines.dataset.summary import Summary

data = typer.Typer(help="Datasets: show, verify, retry, checksums.", no_args_is_help=True)

Dataset = Annotated[
    str,
    typer.Argument(help="Folder of a dataset, or a root (its newest dataset).", metavar="DATASET"),
]
_NUM_SHOWN = 20
_NUM_OF_GROUP = 4


@data.command()
def show(
    dataset: Dataset,
    sheet: Annotated[
        str | None, typer.Option(help="Write a PNG of LQ | HQ pairs to this file.", metavar="FILE")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a dataset: faces, sizes, quarantined photos, histograms of the parameters of Eq. 13.

    With --sheet also a contact sheet of LQ | HQ pairs.
    """
    from pipelines import storage
    from pipelines.dataset.contact_sheet import contact_sheet
    from pipelines.dataset.manifest import open_dataset
    from pipelines.dataset.near_duplicates import find_near_duplicates
    from pipelines.dataset.shard_plan import read_config
    from pipelines.dataset.summary import summarize
    from pipelines.sources.sandboxed_images import decode_ours_sandboxed

    folder = find_dataset(dataset)
    opened = open_dataset(folder, decode_ours_sandboxed)
    summary, degradation = summarize(opened), read_config(folder).spec
    alike = find_near_duplicates(opened.samples)
    if sheet:
        storage.write_atomic(sheet, contact_sheet(opened))
    if as_json:
        described = {
            **dataclasses.asdict(degradation),
            "recipe": degradation.recipe,
            "portable": degradation.portable,
        }
        say_json(
            {
                "folder": folder,
                **dataclasses.asdict(opened.info),
                "columns": opened.columns,
                "sizes": summary.columns,
                "histograms": summary.histograms,
                "gray": summary.gray,
                "flipped": summary.flipped,
                "photos": summary.photos,
                "inside": summary.inside,
                "near_duplicates": alike,
                "degradation": described,
                "sheet": sheet,
            }
        )
        return
    facts = _facts(folder, opened.info, degradation, summary, opened.is_aligned)
    say_block(table(("dataset", ""), [*facts, ("near-duplicates", _describe_near(alike))]))
    for group in alike.across_splits[:_NUM_SHOWN]:
        faces = ", ".join(f"{twin.source} ({twin.split})" for twin in group[:_NUM_OF_GROUP])
        say(f"! these look the same: {faces}{', ...' if len(group) > _NUM_OF_GROUP else ''}")
    say("")
    sizes = [
        (size.column, _rounded(size.num_bytes / 1e6), _rounded(size.median / 1e3)) for size in summary.columns
    ]
    say_block(table(("column", "MB", "kB a file, median"), sizes))
    say("")
    rows = [
        (h.name, f"{h.edges[0]:.3g}", h.bars(), f"{h.edges[-1]:.3g}", f"{h.mean:.3g}", h.unit)
        for h in summary.histograms
    ]
    say_block(table(("parameter", "from", "", "to", "mean", ""), rows))
    if sheet:
        say(f"contact sheet: {sheet}")


@data.command()
def verify(
    dataset: Dataset,
    level: Annotated[
        int,
        typer.Option(
            help="0 records, 1 sizes, 2 every byte, 3 every pixel, 4 every LQ computed again.", min=0, max=4
        ),
    ] = 2,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 is this one.", min=0)] = 0,
    as_json: options.Json = False,
) -> None:
    """Compare a dataset with its commits; at the highest level every low-quality face is computed again.

    Exit 1 if anything differs.
    """
    from diffbfr.shards import ShardDamagedError
    from pipelines.cluster import Cluster, ClusterConfig
    from pipelines.dataset.verify import LEVELS, plan_verification, verify_shard
    from pipelines.dataset.verify_records import verify_records

    folder = find_dataset(dataset)
    tasks = plan_verification(folder, level)
    problems = verify_records(folder)
    with Cluster(ClusterConfig(num_workers=workers)) as cluster:
        reports = cluster.map(verify_shard, tasks, label="verify", unit="shards")
    for report in reports:
        problems += report.problems
    counts = {
        "shards": len(reports),
        "faces": sum(report.samples for report in reports),
        "low_quality_faces_made_again": sum(report.low_quality_faces for report in reports),
        "bytes_read": sum(report.num_bytes for report in reports),
    }
    if as_json:
        say_json({"folder": folder, "level": level, **counts, "problems": problems})
    else:
        checked = ", ".join(LEVELS[: level + 1])
        rows = [
            ("folder", folder),
            ("checked", checked),
            *((name.replace("_", " "), str(count)) for name, count in counts.items()),
        ]
        say_block(table(("verify", ""), [*rows, ("damaged", str(len(problems)))]))
        for problem in problems[:_NUM_SHOWN]:
            say(f"{problem.path}: {problem.message}")
    if problems:
        first = problems[0]
        raise ShardDamagedError(
            f"{len(problems)} problems in {folder} (first: {first.path}: {first.message})"
        )


@data.command()
def retry(dataset: Dataset, as_json: options.Json = False) -> None:
    """Release quarantined photos, so that the command that made the dataset tries them again."""
    from pipelines.dataset.retry import begin_retry, find_latest_dataset

    folder = find_latest_dataset(dataset)
    if folder is None:
        raise UsageError(
            f"{dataset} holds no dataset, finished or not; expected one or a root with one; run `diffbfr "
            "shard`"
        )
    photos, shards = begin_retry(folder)
    if as_json:
        say_json({"folder": folder, "photos": photos, "shards": shards})
    elif photos:
        say(
            f"{photos} quarantined photos of {shards} shards are free to be tried again: run the command "
            f"that made {folder}"
        )
    else:
        say(f"nothing is quarantined in {folder}")


@data.command()
def checksums(
    dataset: Dataset,
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="train, val or test.", metavar="SPLIT")
    ] = "test",
    variants: Annotated[int, typer.Option(help="How many low-quality faces of each.", min=1)] = 1,
    out: Annotated[
        str | None, typer.Option(help="Read every face, then write the list to this file.", metavar="FILE")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            help="Read every face and compare with a published list; exit 1 if one differs.", metavar="FILE"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the checksums of an evaluation set, to compare its low-quality faces with a published set."""
    from diffbfr.shards import ShardDamagedError
    from pipelines import storage
    from pipelines.dataset.checksums import compare_lists, digest_list, find_damage, list_checksums, read_list
    from pipelines.dataset.manifest import open_dataset

    folder = find_dataset(dataset)
    opened = open_dataset(folder)
    ours = list_checksums(opened, split, variants)
    differences = compare_lists(read_list(check), ours) if check else []
    # the list follows from the manifest, so files are read only to publish or to compare it
    damaged = find_damage(opened, split, variants) if check or out else []
    if out and not damaged:
        storage.write_atomic(out, ours.encode())
    if as_json:
        written = None if damaged else out
        found = {
            "sha256": digest_list(ours),
            "out": written,
            "check": check,
            "differences": differences,
            "damaged": damaged,
        }
        say_json({"folder": folder, **found})
    elif check or out:
        say(f"sha256 of the list: {digest_list(ours)}")
    else:
        say_block(ours.rstrip())
    for line in () if as_json else [*damaged, *differences][:_NUM_SHOWN]:
        say(line)
    if damaged:
        raise ShardDamagedError(
            f"{len(damaged)} faces of {folder} are not what was committed (first: {damaged[0]}); make them "
            "again"
        )
    if differences:
        raise DiffBFRError(
            f"{len(differences)} faces of {folder} are not those of {check} (first: {differences[0]})"
        )
    if check and not as_json:
        say(f"the same faces as {check}")


def _facts(
    folder: str,
    info: "DatasetInfo",
    degradation: "DegradationSpec",
    summary: "Summary",
    is_aligned: bool,
) -> list[tuple[str, str]]:
    return [
        ("folder", folder),
        ("source", info.source),
        (
            "faces",
            f"{info.num_samples} in {info.num_shards} shards (train {info.num_train}, val {info.num_val}, "
            f"test {info.num_test})",
        ),
        *([("aligned", _describe_aligned(info, summary))] if is_aligned else []),
        ("refused", str(info.num_quarantined)),
        ("sizes", f"{info.lq_px} -> {info.hq_px} px, {info.variants} variants each"),
        ("degradation", _describe(degradation)),
        ("variants", f"{summary.flipped:.1%} flipped, {summary.gray:.1%} gray"),
        ("content", info.content_id),
        ("archive", info.archive_id),
    ]


def _describe_aligned(info: "DatasetInfo", summary: "Summary") -> str:
    return (
        f"{info.num_samples} faces found in {summary.photos} photos, which hold {summary.inside:.0%} of a "
        "frame (median); the rest is mirrored, and no loss counts it"
    )


def _describe(degradation: "DegradationSpec") -> str:
    ranges = []
    for name in ("sigma", "r", "delta", "q"):
        low, high = getattr(degradation, name)
        ranges.append(f"{name} {low:.4g}..{high:.4g}")
    before = " after a pipeline of albumentations" if degradation.before else ""
    portable = (
        "the same bytes on every machine"
        if degradation.portable
        else "NOT portable: other machines may make other bytes"
    )
    return f"{degradation.preset} ({', '.join(ranges)}), {degradation.recipe}{before}; {portable}"


def _describe_near(alike: "NearDuplicates") -> str:
    if not alike.groups:
        return "none"
    across = len(alike.across_splits)
    found = f"{alike.faces} faces in {alike.groups} groups, {alike.identical} of equal pixels"
    if not across:
        return f"{found}; no group lies in two splits"
    return f"{found}; {across} groups lie in two splits or more: remove photos, or scores are too good"


def _rounded(value: float) -> float:
    return round(value, 1) if value < 100 else round(value)


def find_dataset(place: str) -> str:
    """The folder of a dataset: `place` itself, or the newest dataset of that root."""
    from pipelines import storage
    from pipelines.dataset.manifest import DATASET_RECORD
    from pipelines.execution.artifact_store import ArtifactStore

    if storage.exists(storage.join(place, DATASET_RECORD)):
        return storage.absolute(place)
    store = ArtifactStore(place)
    newest = store.latest("shard")
    if newest is None:
        raise UsageError(
            f"{place} holds no {DATASET_RECORD} and no artifacts/shard; expected a dataset or a root; run "
            "`diffbfr shard`"
        )
    return store.artifact_dir(newest.identity)
