"""Render the page of a run: images as data URIs, numbers as text, in the template `report.html.j2`.

Names and messages come from others. The template escapes them and isolates their direction, `rendering.py`
takes out controls and passwords, and the page's content security policy lets it load images in it, its own
style and nothing else.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.intervals import Interval
from pipelines import storage
from pipelines.evaluation.scores import Evaluation, SubjectScores, protocol_lines
from pipelines.evaluation.types import TITLES, Panel
from pipelines.progress import duration
from pipelines.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw
from pipelines.report.data import ArchiveFacts, ReportData, RestoredFace, RestoredPhoto, StepLine
from pipelines.report.rendering import image_uri, photo_uri, render_page

_TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
_LARGEST_PX: Final = 640
_EXPLANATIONS: Final = {
    "lq": "low-quality input",
    "irm1": "identity, low resolution",
    "irm2": "identity, full resolution",
    "tem": "texture polished: the result",
    "hq": "ground truth",
}


def write_report(
    place: storage.Uri, data: ReportData, within: storage.Uri = "", mode: int = storage.FILE_MODE
) -> None:
    """Write the page of a run as one HTML file; the same data gives the same bytes.

    `within` and `mode` are as in `storage.write_atomic`.
    """
    storage.write_atomic(place, render(data).encode(), within=within, mode=mode)


def render(data: ReportData) -> str:
    """The page as text."""
    evaluation = data.evaluation
    return render_page(
        _TEMPLATE,
        data=data,
        tiles=_tiles(data),
        columns=[(TITLES[name], _EXPLANATIONS[name]) for name in TITLES],
        rows=[_face_row(evaluation, panel) for panel in evaluation.panels] if evaluation else [],
        whole=[_photo(photo) for photo in data.restored if photo.is_whole],
        photos=[_photo(photo) for photo in data.restored if not photo.is_whole],
        positions=range(0, 101, 5),
        slowest=[(slow, duration(slow.seconds)) for slow in (data.archive.slowest if data.archive else ())],
        heads=[_head(metric) for metric in evaluation.metrics] if evaluation else [],
        lines=[_line(evaluation, line) for line in evaluation.table] if evaluation else [],
        protocol=protocol_lines(evaluation) if evaluation else [],
        drawings=[drawing for curve in data.curves if (drawing := draw(curve))],
        frame={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "top": TOP,
            "bottom": HEIGHT - BOTTOM,
        },
        steps=[_step(step, data.steps) for step in data.steps],
        duration=duration(data.seconds),
    )


@dataclass(frozen=True)
class _Tile:
    """A key figure at the top of the page; `change` is the difference from the input, `good` its sign."""

    value: str
    unit: str
    label: str
    change: str = ""
    good: bool = True


@dataclass(frozen=True)
class _Image:
    source: str
    title: str
    is_result: bool


@dataclass(frozen=True)
class _FaceRow:
    key: str
    caption: str
    images: tuple[_Image, ...]


@dataclass(frozen=True)
class _Photo:
    photo: RestoredPhoto
    before: str
    after: str
    spread: str
    faces: tuple["_Face", ...]


@dataclass(frozen=True)
class _Face:
    face: RestoredFace
    before: str
    after: str


@dataclass(frozen=True)
class _Cell:
    value: str
    interval: str
    change: str
    good: bool
    best: bool


@dataclass(frozen=True)
class _Line:
    title: str
    explanation: str
    cells: tuple[_Cell, ...]
    result: bool


@dataclass(frozen=True)
class _Step:
    step: StepLine
    duration: str
    percent_of_longest: float


def _tiles(data: ReportData) -> list[_Tile]:
    tiles = []
    if data.evaluation is not None:
        for metric in data.evaluation.metrics:
            before, after = (data.evaluation.interval(subject, metric.name) for subject in ("lq", "tem"))
            tiles.append(
                _Tile(
                    _number(after.mean, metric),
                    metric.unit,
                    f"{metric.name}, TEM",
                    f"{_change(before, after, metric)} against LQ",
                    _better(before, after, metric),
                )
            )
    if data.counts:
        total = sum(number for status, number in data.counts if status != "skipped")
        done = sum(number for status, number in data.counts if status == "restored")
        tiles.append(_Tile(str(done), "", f"of {total} photos restored"))
    if data.archive is not None:
        tiles += _archive_tiles(data.archive)
    ran = sum(step.action == "RUN" for step in data.steps)
    tiles.append(
        _Tile(duration(data.seconds), "", f"{ran} of {len(data.steps)} steps run" if data.steps else "in all")
    )
    return tiles


def _archive_tiles(archive: ArchiveFacts) -> list[_Tile]:
    counts = dict(archive.faces)
    tiles = []
    if counts:
        num_faces = sum(number for name, number in counts.items() if name != "doubtful")
        tiles.append(_Tile(str(counts.get("restored", 0)), "", f"of {num_faces} faces restored"))
    if counts.get("doubtful"):
        tiles.append(_Tile(str(counts["doubtful"]), "", "of them doubtful", "look at these", good=False))
    if archive.rate:
        tiles.append(_Tile(f"{archive.rate:.3g}", "/ s", "photos in this run"))
    return tiles


def _face_row(evaluation: Evaluation, panel: Panel) -> _FaceRow:
    images = tuple(_Image(image_uri(png), TITLES[name], name == "tem") for name, png in panel.images())
    first = evaluation.metrics[0]
    scores = {
        row.subject: row.values[0]
        for row in evaluation.rows
        if row.key == panel.key and row.seed in (None, evaluation.protocol.seeds[0])
    }
    caption = f"{first.name} {_number(scores['lq'], first)} → {_number(scores['tem'], first)} {first.unit}"
    return _FaceRow(panel.key, caption, images)


def _photo(photo: RestoredPhoto) -> _Photo:
    before, after, spread = (
        photo_uri(data, _LARGEST_PX) for data in (photo.before, photo.after, photo.spread)
    )
    if photo.is_whole:  # made for this page, in a process of its own
        before, after = (image_uri(data) if data else "" for data in (photo.before, photo.after))
    faces = (
        _Face(face, image_uri(face.before), image_uri(face.after) if face.after else "")
        for face in photo.faces
    )
    return _Photo(photo, before, after, spread, tuple(faces))


def _head(metric: MetricInfo) -> str:
    return f"{metric.label} {'↑' if metric.better == 'higher' else '↓'}"


def _line(evaluation: Evaluation, line: SubjectScores) -> _Line:
    cells = []
    for m, (metric, interval) in enumerate(zip(evaluation.metrics, line.intervals, strict=True)):
        column = [other.intervals[m].mean for other in evaluation.table]
        before = evaluation.interval("lq", metric.name)
        cells.append(
            _Cell(
                value=_number(interval.mean, metric),
                interval=f"{_number(interval.low, metric)} – {_number(interval.high, metric)}",
                change="" if line.subject == "lq" else _change(before, interval, metric),
                good=_better(before, interval, metric),
                best=interval.mean == (max(column) if metric.better == "higher" else min(column)),
            )
        )
    return _Line(TITLES[line.subject], _EXPLANATIONS[line.subject], tuple(cells), line.subject == "tem")


def _step(step: StepLine, steps: tuple[StepLine, ...]) -> _Step:
    longest = max(other.seconds for other in steps) or 1.0
    return _Step(step, duration(step.seconds), round(max(0.5, 100 * step.seconds / longest), 1))


def _number(value: float, metric: MetricInfo) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if metric.unit == "dB" else f"{value:.3f}"


def _change(before: Interval, after: Interval, metric: MetricInfo) -> str:
    change = 0.0 if after.mean == before.mean else after.mean - before.mean  # both may be infinite
    return f"{'+' if change >= 0 else '−'}{_number(abs(change), metric)}"


def _better(before: Interval, after: Interval, metric: MetricInfo) -> bool:
    return after.mean >= before.mean if metric.better == "higher" else after.mean <= before.mean
