"""The page of an evaluation of pairs: the table, and the worst and best faces as pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines import storage
from pipelines.evaluation.pair_scores import MetricLine, PairScores, format_line, protocol_text
from pipelines.evaluation.pairing import Pair, PairedFolders
from pipelines.report.rendering import photo_uri, render_page
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError

PAGE: Final = "report.html"
NUM_SHOWN: Final = 4
RANKED_BY: Final = ("lpips_alex", "lpips_vgg", "psnr")
"""The first of these that was measured decides which faces are the worst and the best."""

_TEMPLATE: Final = Path(__file__).with_name("pairs.html.j2")
_LARGEST_PX: Final = 384


@dataclass(frozen=True)
class _Face:
    key: str
    value: str
    images: tuple[tuple[str, str], ...]


def write_pairs_page(scores: PairScores, folders: PairedFolders, folder: storage.Uri) -> storage.Uri:
    """Write the page into the folder of the result and return its place."""
    place = storage.join(folder, PAGE)
    storage.write_atomic(place, render_pairs(scores, folders).encode())
    return place


def render_pairs(scores: PairScores, folders: PairedFolders) -> str:
    """The page as text."""
    ranking = _ranking(scores)
    groups = []
    if ranking is not None:
        order = _worst_first(scores, ranking)
        shown = min(NUM_SHOWN, len(order))
        groups = [
            ("The worst faces", [_face(scores, folders, ranking, number) for number in order[:shown]]),
            ("The best faces", [_face(scores, folders, ranking, number) for number in order[-shown:][::-1]]),
        ]
    lines = [
        (
            line.info.label,
            "↑" if line.info.better == "higher" else "↓",
            format_line(line),
            bool(line.unavailable),
        )
        for line in scores.lines
    ]
    return render_page(
        _TEMPLATE,
        scores=scores,
        lines=lines,
        ranking=ranking.info.name if ranking else "",
        groups=groups,
        protocol=protocol_text(scores),
    )


def _ranking(scores: PairScores) -> MetricLine | None:
    measured = [line for line in scores.lines if line.interval is not None]
    by_key = {line.key: line for line in measured}
    return next((by_key[key] for key in RANKED_BY if key in by_key), measured[0] if measured else None)


def _worst_first(scores: PairScores, ranking: MetricLine) -> list[int]:
    values = scores.rows[ranking.key]
    sign = 1 if ranking.info.better == "higher" else -1
    return sorted(range(len(values)), key=lambda number: sign * values[number])


def _face(scores: PairScores, folders: PairedFolders, ranking: MetricLine, number: int) -> _Face:
    pair: Pair = folders.pairs[number]
    pictures = [
        ("restored", folders.restored, pair.restored),
        ("reference", folders.reference, pair.reference),
    ]
    if folders.lq is not None and pair.lq is not None:
        pictures.insert(0, ("input", folders.lq, pair.lq))
    images = tuple((title, photo_uri(_read(source, ref), _LARGEST_PX)) for title, source, ref in pictures)
    value = f"{ranking.info.name} {scores.rows[ranking.key][number]:.3f}"
    return _Face(pair.key, value, images)


def _read(source: PhotoSource, ref: PhotoRef) -> bytes | None:
    """The bytes of a picture; None if it was removed since it was measured."""
    try:
        return source.read(ref)
    except (PhotoUnreadableError, OSError):
        return None
