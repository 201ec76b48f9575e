"""Evaluate the outputs of any method: pair folders, measure on the cluster, write scores and a page.

OUT/scores.json, OUT/rows.csv, OUT/report.html; OUT/parts/ holds what is measured until everything is.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from diffbfr.errors import UsageError
from diffbfr.metrics.cards import SET_METRICS, ProtocolCard
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.evaluation.metric_table import (
    MetricEntry,
    MetricFiles,
    installed_files,
    metric_table,
    unavailable,
)
from pipelines.evaluation.pair_scores import EvaluatedData, PairScores, pair_lines, write_pair_scores
from pipelines.evaluation.pair_task import PairPart, PairTask, make_pair_worker, read_parts
from pipelines.evaluation.pairing import PairedFolders, chunks, pair_folders, read_picture
from pipelines.evaluation.scores import digest_of_keys
from pipelines.evaluation.set_scores import score_sets
from pipelines.execution.staging import stage_file
from pipelines.flows.places import require_places
from pipelines.flows.setup_faces import detector_weights
from pipelines.steps.evaluate import identity_weights, squeezenet_weights

if TYPE_CHECKING:
    from diffbfr.metrics.frechet import FeatureStatistics
    from pipelines.cluster import Cluster

PARTS: Final = "parts"
PAIRS_PER_TASK: Final = 16
LIBRARIES: Final = ("torch", "numpy", "pillow")


@dataclass(frozen=True)
class PairRequest:
    """What to evaluate. `metrics` are those of the card that are wanted; `statistics` is an .npz or ""."""

    restored: str
    reference: str
    card: ProtocolCard
    metrics: tuple[str, ...]
    lq: str | None = None
    statistics: str = ""
    allow_few: bool = False


@dataclass(frozen=True)
class PairReport:
    """Where the result is, and the result; `references` are the references' statistics by embedding."""

    folder: storage.Uri
    page: storage.Uri
    scores: PairScores
    references: dict[str, "FeatureStatistics"]


def evaluate_pairs(request: PairRequest, out: storage.Uri, cluster: "Cluster") -> PairReport:
    """Evaluate; the same command continues what was interrupted. UsageError before anything is measured."""
    from pipelines.report.pairs_page import write_pairs_page

    table = metric_table()
    folders = pair_folders(request.restored, request.reference, request.lq)
    side_px = _check_sizes(request, folders)
    given, statistics_text = _open_statistics(request, folders)
    files = installed_files(squeezenet_weights(None), identity_weights(None), _detector())
    missing = _missing(request, table, files, min(side_px), given)
    measured = {key: table[key] for key in request.metrics if key not in missing}
    _check_count(request, folders, measured)
    tasks = _tasks(request, folders, out, tuple(measured), files, side_px, given)
    _measure(tasks, cluster, out)
    rows, seconds = _collect(tasks)
    keys = tuple(pair.key for pair in folders.pairs)
    sets = {key: entry for key, entry in measured.items() if key in SET_METRICS}
    set_scores, references = (
        score_sets(read_parts(tasks), sets, given, reference_source(keys)) if sets else ({}, {})
    )
    scores = PairScores(
        card=request.card,
        data=EvaluatedData(
            restored=without_secrets(request.restored),
            reference=without_secrets(request.reference),
            lq=without_secrets(request.lq) if request.lq else None,
            num_pairs=len(keys),
            keys_sha256=digest_of_keys(keys),
            height=side_px[0],
            width=side_px[1],
            follows_card=request.card.num_pairs in (None, len(keys)),
            statistics=statistics_text,
        ),
        lines=pair_lines({key: table[key].info for key in request.metrics}, missing, keys, rows, set_scores),
        weights=_weight_digests(measured, files),
        versions=library_versions(),
        seconds={name: round(value / len(keys), 4) for name, value in seconds.items()},
        keys=keys,
        rows=rows,
    )
    write_pair_scores(scores, out)
    page = write_pairs_page(scores, folders, out)
    storage.remove_tree(storage.join(out, PARTS))
    return PairReport(out, page, scores, references)


def result_folder(request: PairRequest, root: storage.Uri) -> storage.Uri:
    """The folder of a request below the root: the same request has the same one."""
    places = [request.restored, request.reference, request.lq, request.statistics]
    absolute = [storage.absolute(place) if place else "" for place in places]
    text = json.dumps([*absolute, request.card.digest, request.metrics, request.allow_few])
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return storage.join(root, "evaluations", f"{request.card.name}-{name}")


def library_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that compute or decode."""
    from diffbfr import __version__

    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"diffbfr": __version__, "python": platform.python_version(), **found}


def _detector() -> str | None:
    """The file of the face detector; None if none is installed."""
    try:
        return str(detector_weights())
    except UsageError:
        return None


def _check_sizes(request: PairRequest, folders: PairedFolders) -> tuple[int, int]:
    """Height and width of the first reference, which all pictures must have; the card may want one."""
    first = folders.pairs[0].reference
    height, width = read_picture(folders.reference, first).shape[:2]
    px = request.card.px
    if px is not None and (height, width) != (px, px):
        raise UsageError(
            f"{first.name} of {folders.reference.uri} is {width} x {height}; card {request.card.name} wants "
            f"{px} x {px}; give pictures of that size, or another --protocol"
        )
    return height, width


def _missing(
    request: PairRequest,
    table: Mapping[str, MetricEntry],
    files: MetricFiles,
    side_px: int,
    given: "FeatureStatistics | None",
) -> dict[str, str]:
    """Why each metric that cannot be measured cannot."""
    missing = {}
    for key in request.metrics:
        reason = unavailable(key, table[key], files, request.lq is not None, side_px)
        elsewhere = request.card.fid_reference != "pairs"
        if not reason and key in ("fid", "kid"):
            if key == "kid" and (given is not None or elsewhere):
                reason = "it needs the pictures that FID is against, not their statistics"
            elif elsewhere and given is None:
                reason = (
                    f"give the statistics of {request.card.fid_reference} with --statistics; make them once "
                    "with --reference FOLDER --write-statistics FILE"
                )
        if reason:
            missing[key] = reason
    return missing


def _open_statistics(request: PairRequest, folders: PairedFolders) -> tuple["FeatureStatistics | None", str]:
    """The given statistics, and what FID is against, in words."""
    from diffbfr.metrics.frechet import FID_EMBEDDING, from_npz

    card = request.card
    if not request.statistics:
        if card.fid_reference == "pairs":
            return None, f"the {len(folders.pairs)} references"
        return None, f"{card.fid_reference}, whose statistics were not given"
    if not storage.exists(request.statistics):
        raise UsageError(
            f"no file {request.statistics}; expected statistics as .npz; make them with --write-statistics"
        )
    data = storage.read_bytes(request.statistics)
    given = from_npz(data, request.statistics)
    if given.embedding != FID_EMBEDDING:
        raise UsageError(
            f"{request.statistics} is of {given.embedding} ({len(given.mean)} numbers); expected "
            f"{FID_EMBEDDING}; make it with --write-statistics"
        )
    keys = tuple(pair.key for pair in folders.pairs)
    if card.fid_reference == "pairs" and given.source != reference_source(keys):
        raise UsageError(
            f"{request.statistics} is not of the pictures of {request.reference}; card {card.name} takes "
            "FID against these; leave out --statistics, or choose another --protocol"
        )
    wanted = card.fid_reference_count
    if wanted is not None and given.count not in (0, wanted) and not request.allow_few:
        raise UsageError(
            f"{request.statistics} is of {given.count} pictures; card {card.name} wants {wanted} of "
            f"{card.fid_reference}; give those, or print figures for other data with --allow-few"
        )
    count = f"{given.count} pictures" if given.count else "an unknown number of pictures"
    return given, f"given statistics of {count}, sha256 {hashlib.sha256(data).hexdigest()[:20]}"


def reference_source(keys: Sequence[str]) -> str:
    """What a file of statistics says of the pictures that it was made from."""
    return f"pictures {digest_of_keys(keys)}"


def _check_count(request: PairRequest, folders: PairedFolders, measured: Mapping[str, MetricEntry]) -> None:
    """UsageError for fewer pairs than the card or a covariance wants, unless few are allowed."""
    from diffbfr.metrics.face_resnet import NUM_FEATURES as DLIB
    from diffbfr.metrics.frechet import DLIB_EMBEDDING, FID_EMBEDDING, MOBILEFACENET_EMBEDDING, NUM_FEATURES
    from diffbfr.metrics.identity import NUM_FEATURES as MOBILEFACENET

    if request.allow_few:
        return
    count, card = len(folders.pairs), request.card
    if card.num_pairs not in (None, count):
        raise UsageError(
            f"{count} pairs; card {card.name} wants {card.num_pairs}; give its data, choose another "
            "--protocol, or print figures for other data with --allow-few"
        )
    widths = {FID_EMBEDDING: NUM_FEATURES, DLIB_EMBEDDING: DLIB, MOBILEFACENET_EMBEDDING: MOBILEFACENET}
    for key, entry in measured.items():
        if key in SET_METRICS and key != "kid" and count <= widths[entry.embedding]:
            raise UsageError(
                f"{count} pictures are too few for the covariance of {entry.info.name}, which wants "
                f"{widths[entry.embedding] + 1}; give more, print it with --allow-few, or leave it out with "
                "--metrics"
            )


def _tasks(
    request: PairRequest,
    folders: PairedFolders,
    out: storage.Uri,
    metrics: tuple[str, ...],
    files: MetricFiles,
    side_px: tuple[int, int],
    given: "FeatureStatistics | None",
) -> tuple[PairTask, ...]:
    weights = _weight_digests({key: metric_table()[key] for key in metrics}, files)
    # What was measured for another request, by other weights or of changed files is not taken.
    identity = hashlib.sha256(
        json.dumps([request.card.digest, metrics, weights, given is None, side_px]).encode()
    )
    for pair in folders.pairs:
        refs = (pair.restored, pair.reference, pair.lq)
        identity.update(repr([(ref.name, ref.fingerprint) for ref in refs if ref]).encode("utf-8", "replace"))
    parts = storage.join(out, PARTS, identity.hexdigest()[:20])
    return tuple(
        PairTask(
            index=index,
            folder=parts,
            restored=folders.restored,
            reference=folders.reference,
            lq=folders.lq,
            pairs=pairs,
            metrics=metrics,
            files=files,
            side_px=side_px,
            embeds_references=given is None,
        )
        for index, pairs in enumerate(chunks(folders.pairs, PAIRS_PER_TASK))
    )


def _measure(tasks: Sequence[PairTask], cluster: "Cluster", out: storage.Uri) -> None:
    done = set(storage.list_dir(tasks[0].folder))
    waiting = [task for task in tasks if f"{task.index:06}.npz" not in done]
    if waiting and cluster.is_joined:
        first = waiting[0]
        sources = [(first.restored, first.pairs[0].restored), (first.reference, first.pairs[0].reference)]
        require_places(cluster, str(out), [(source, [ref]) for source, ref in sources])
        files = _staged(first.files, storage.join(out, PARTS))
        waiting = [replace(task, files=files) for task in waiting]
    if waiting:
        cluster.map_actors(
            partial(make_pair_worker, waiting[0]),
            waiting,
            label="evaluate",
            unit="pairs",
            weight=lambda task: len(task.pairs),
        )


def _staged(files: MetricFiles, place: storage.Uri) -> MetricFiles:
    """The weights for workers on other machines, copied beside what they measure."""
    return MetricFiles(**{name: path and stage_file(path, place) for name, path in asdict(files).items()})


def _collect(tasks: tuple[PairTask, ...]) -> tuple[dict[str, tuple[float, ...]], dict[str, float]]:
    """The columns of values of all tasks, and the seconds of every probe."""
    columns: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for part in read_parts(tasks):
        _add(columns, seconds, part)
    return {key: tuple(column) for key, column in columns.items()}, seconds


def _add(columns: dict[str, list[float]], seconds: dict[str, float], part: PairPart) -> None:
    for key, values in part.values.items():
        columns.setdefault(key, []).extend(values.tolist())
    for name, value in part.seconds.items():
        seconds[name] = seconds.get(name, 0.0) + value


def _weight_digests(measured: Mapping[str, MetricEntry], files: MetricFiles) -> dict[str, str]:
    """The sha256 of the file that each metric uses."""
    paths = asdict(files)
    digests: dict[str, str] = {}
    for path in sorted({paths[entry.file] for entry in measured.values() if entry.file}):
        digests[path] = storage.digest(path)
    return {key: digests[paths[entry.file]] for key, entry in measured.items() if entry.file}
