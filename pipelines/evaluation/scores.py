"""The result of an evaluation: means over images with their uncertainty, the protocol they were taken by, and
its files.

FOLDER/evaluation.json          protocol, metric cards, the table
FOLDER/rows.csv                 a row a picture: key, subject, seed, one column a metric
FOLDER/panels.png               every panel under column titles
FOLDER/panels/KEY/NAME.png      the single pictures
"""

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.intervals import Interval, bootstrap
from diffbfr.stages import Mode
from pipelines import storage
from pipelines.evaluation.panels import render_strip
from pipelines.evaluation.types import (
    SUBJECTS,
    TITLES,
    EvaluateReport,
    EvaluateTask,
    Panel,
    Row,
    Subject,
)


@dataclass(frozen=True)
class Protocol:
    """What was measured: two evaluations are comparable only where `digest` agrees, whichever cascade each
    of them judged.
    """

    dataset: str
    split: str
    num_images: int
    variant: int
    seeds: tuple[int, ...]
    mode: Mode
    hq_px: int
    keys_sha256: str
    metrics: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of the hold-out, the draws and the sampling mode; the metrics carry versions of their
        own.
        """
        fields = {name: value for name, value in asdict(self).items() if name != "metrics"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class SubjectScores:
    """One line of the table: an interval a metric, in the order of the cards."""

    subject: Subject
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation found."""

    protocol: Protocol
    cards: tuple[MetricInfo, ...]
    table: tuple[SubjectScores, ...]
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]

    def interval(self, subject: Subject, metric: str) -> Interval:
        """One cell of the table, by the metric's name."""
        names = [card.name for card in self.cards]
        if metric not in names:
            raise UsageError(f"no metric {metric!r} was measured; this evaluation has {', '.join(names)}")
        return next(line for line in self.table if line.subject == subject).intervals[names.index(metric)]


def summarise(
    tasks: Sequence[EvaluateTask], reports: Sequence[EvaluateReport], content_id: str, split: str, hq_px: int
) -> Evaluation:
    """Join the reports of all tasks; draws of one image are averaged before images are, so the interval is
    over images.
    """
    rows = tuple(row for report in sorted(reports, key=lambda report: report.index) for row in report.rows)
    keys = tuple(key for task in tasks for key in task.keys)
    missing = set(keys) - {row.key for row in rows}
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {len(keys)} faces were not measured ({sorted(missing)[0]} ..); rerun the "
            "same command"
        )
    cards = reports[0].cards
    panels = {panel.key: panel for report in reports for panel in report.panels}
    first = tasks[0]
    protocol = Protocol(
        dataset=content_id,
        split=split,
        num_images=len(keys),
        variant=first.variant,
        seeds=first.seeds,
        mode=first.mode,
        hq_px=hq_px,
        keys_sha256=digest_of_keys(keys),
        metrics=tuple(f"{card.name} v{card.version}" for card in cards),
    )
    table = tuple(SubjectScores(subject, _intervals(rows, subject, len(cards))) for subject in SUBJECTS)
    return Evaluation(protocol, cards, table, rows, tuple(panels[key] for key in keys if key in panels))


def digest_of_keys(keys: Sequence[str]) -> str:
    """Which faces, in which order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def format_table(evaluation: Evaluation) -> str:
    """The table as text: means with their 95 % intervals, then the protocol of every number."""
    head = ["", *(f"{card.label} {'↑' if card.better == 'higher' else '↓'}" for card in evaluation.cards)]
    body = [[TITLES[line.subject], *(map(format_interval, line.intervals))] for line in evaluation.table]
    widths = [max(len(row[column]) for row in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *body]
    ]
    return "\n".join([*lines, "", *protocol_lines(evaluation)])


def format_interval(interval: Interval) -> str:
    """Write a mean with its 95 % interval, to the digits that mean something."""
    digits = 2 if abs(interval.mean) >= 2 else 3
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def protocol_lines(evaluation: Evaluation) -> list[str]:
    """Say what was measured and how, one line each."""
    p = evaluation.protocol
    draws = f"{len(p.seeds)} draw{'s' if len(p.seeds) > 1 else ''} a face"
    what = (
        f"{p.num_images} faces of split {p.split}, degradation {p.variant}, {draws}, {p.mode} sampling, "
        f"{p.hq_px} px; "
        f"mean [95 % bootstrap interval over faces]; protocol {p.digest}"
    )
    return [what, *(f"{card.name} v{card.version}: {card.protocol}." for card in evaluation.cards)]


def means(evaluation: Evaluation) -> dict[str, float]:
    """Every mean by name, `tem.squeezenet_distance`: what goes to trackers and tags."""
    return {
        f"{line.subject}.{metric_slug(card)}": interval.mean
        for line in evaluation.table
        for card, interval in zip(evaluation.cards, line.intervals, strict=True)
    }


def faces(evaluation: Evaluation, subject: Subject) -> dict[str, tuple[float, ...]]:
    """The scores of every face, in the order of the cards; a mean where it was drawn several times."""
    return _by_face(evaluation.rows, subject)


def metric_slug(card: MetricInfo) -> str:
    """Return a metric's name as trackers and tags like it: `squeezenet_distance`."""
    return card.name.lower().replace(" ", "_")


def write_evaluation(evaluation: Evaluation, folder: storage.Uri) -> list[str]:
    """Write the files and return their paths relative to the folder; the same evaluation writes the same
    bytes.
    """
    files = {"rows.csv": _rows_csv(evaluation)}
    for panel in evaluation.panels:
        files |= {f"panels/{panel.key}/{name}.png": png for name, png in panel.pictures()}
    if evaluation.panels:
        files["panels.png"] = render_strip(evaluation.panels)
    summary = {
        "protocol": asdict(evaluation.protocol),
        "protocol_digest": evaluation.protocol.digest,
        "cards": [asdict(card) for card in evaluation.cards],
        "table": [
            {"subject": line.subject, "intervals": [_plain(interval) for interval in line.intervals]}
            for line in evaluation.table
        ],
        "panels": [panel.key for panel in evaluation.panels],
    }
    files["evaluation.json"] = (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode()
    for name, data in files.items():
        storage.write_atomic(storage.join(folder, *name.split("/")), data)
    return sorted(files)


def read_evaluation(folder: storage.Uri) -> Evaluation:
    """Read what `write_evaluation` wrote."""
    place = storage.join(folder, "evaluation.json")
    if not storage.exists(place):
        raise UsageError(f"no evaluation in {folder}; expected evaluation.json; run `diffbfr evaluate`")
    summary = storage.read_json(place)
    protocol = summary["protocol"]
    table = [
        SubjectScores(line["subject"], tuple(map(_interval, line["intervals"]))) for line in summary["table"]
    ]
    return Evaluation(
        protocol=Protocol(
            **{**protocol, "seeds": tuple(protocol["seeds"]), "metrics": tuple(protocol["metrics"])}
        ),
        cards=tuple(MetricInfo(**card) for card in summary["cards"]),
        table=tuple(table),
        rows=tuple(_read_rows(storage.read_bytes(storage.join(folder, "rows.csv")))),
        panels=tuple(_read_panel(folder, key) for key in summary["panels"]),
    )


def _intervals(rows: Sequence[Row], subject: Subject, num_metrics: int) -> tuple[Interval, ...]:
    scores = _by_face(rows, subject).values()
    return tuple(bootstrap([values[m] for values in scores]) for m in range(num_metrics))


def _by_face(rows: Sequence[Row], subject: Subject) -> dict[str, tuple[float, ...]]:
    by_key: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in rows:
        if row.subject == subject:
            by_key[row.key].append(row.values)
    return {key: tuple(map(_mean, zip(*draws, strict=True))) for key, draws in by_key.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _plain(interval: Interval) -> list[float | str]:
    """Mean, low, high, count; an infinite PSNR as text, because JSON has no infinity."""
    values = (interval.mean, interval.low, interval.high)
    return [*(value if math.isfinite(value) else str(value) for value in values), interval.count]


def _interval(cell: Sequence[Any]) -> Interval:
    return Interval(mean=float(cell[0]), low=float(cell[1]), high=float(cell[2]), count=int(cell[3]))


def _rows_csv(evaluation: Evaluation) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "subject", "seed", *(metric_slug(card) for card in evaluation.cards)])
    writer.writerows(
        [row.key, row.subject, "" if row.seed is None else row.seed, *map(repr, row.values)]
        for row in evaluation.rows
    )
    return text.getvalue().encode()


def _read_rows(data: bytes) -> list[Row]:
    lines: list[Any] = list(csv.reader(io.StringIO(data.decode())))[1:]
    return [
        Row(key, subject, int(seed) if seed else None, tuple(map(float, values)))
        for key, subject, seed, *values in lines
    ]


def _read_panel(folder: storage.Uri, key: str) -> Panel:
    names = ("lq", "irm1", "irm2", "tem", "hq")
    return Panel(
        key, *(storage.read_bytes(storage.join(folder, "panels", key, f"{name}.png")) for name in names)
    )
