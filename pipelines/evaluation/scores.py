"""The result of an evaluation: means over faces with intervals, the protocol, and the files.

FOLDER/evaluation.json          the protocol, the metrics, the table of means
FOLDER/rows.csv                 a row for each image: key, subject, seed, one column for each metric
FOLDER/panels.png               all panels under column titles
FOLDER/panels/KEY/NAME.png      the single images
"""

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from diffbfr.errors import IncompleteError, UsageError
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.intervals import Interval, bootstrap
from diffbfr.stages import Mode
from diffbfr.text import format_columns
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
    """What was measured and how; evaluations of two cascades are comparable if their `digest` is equal."""

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
        """Digest of the hold-out, the seeds and the sampling mode, without the versions of the metrics."""
        fields = {name: value for name, value in asdict(self).items() if name != "metrics"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class SubjectScores:
    """One line of the table: an interval for each metric, in the order of `Evaluation.metrics`."""

    subject: Subject
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: the table of means, the scores of every image, and the panels."""

    protocol: Protocol
    metrics: tuple[MetricInfo, ...]
    table: tuple[SubjectScores, ...]
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]

    def interval(self, subject: Subject, metric: str) -> Interval:
        """One cell of the table; UsageError if there is no metric of that name."""
        names = [info.name for info in self.metrics]
        if metric not in names:
            raise UsageError(f"no metric {metric!r} was measured; this evaluation has {', '.join(names)}")
        return next(line for line in self.table if line.subject == subject).intervals[names.index(metric)]


def aggregate(
    tasks: Sequence[EvaluateTask], reports: Sequence[EvaluateReport], content_id: str, split: str, hq_px: int
) -> Evaluation:
    """Combine the reports of all tasks; IncompleteError if a face was not measured.

    The scores of one face are averaged over its seeds first, so that the intervals are over faces.
    """
    in_order = sorted(reports, key=lambda report: report.index)
    rows = tuple(chain.from_iterable(report.rows for report in in_order))
    keys = tuple(chain.from_iterable(task.keys for task in tasks))
    # a mean over fewer faces than planned would look like a result
    missing = set(keys) - {row.key for row in rows}
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {len(keys)} faces were not measured ({sorted(missing)[0]} ..); rerun the "
            "same command"
        )
    metrics = reports[0].metrics
    every_panel = chain.from_iterable(report.panels for report in reports)
    panels = {panel.key: panel for panel in every_panel}
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
        metrics=tuple(f"{metric.name} v{metric.version}" for metric in metrics),
    )
    table = tuple(SubjectScores(subject, _intervals(rows, subject)) for subject in SUBJECTS)
    return Evaluation(protocol, metrics, table, rows, tuple(panels[key] for key in keys if key in panels))


def digest_of_keys(keys: Sequence[str]) -> str:
    """Digest of the keys of the faces, in their order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def format_table(evaluation: Evaluation) -> str:
    """The table as text: means with their 95 % intervals, then the protocol of every metric."""
    head = [
        "",
        *(f"{metric.label} {'↑' if metric.better == 'higher' else '↓'}" for metric in evaluation.metrics),
    ]
    body = [[TITLES[line.subject], *map(format_interval, line.intervals)] for line in evaluation.table]
    return "\n".join([format_columns([head, *body]), "", *protocol_lines(evaluation)])


def format_interval(interval: Interval) -> str:
    """A mean with its 95 % interval, with 2 decimals from 2 upwards and 3 below."""
    digits = 2 if abs(interval.mean) >= 2 else 3
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def protocol_lines(evaluation: Evaluation) -> list[str]:
    """The protocol as text: a line for the measured faces, then one for each metric."""
    p = evaluation.protocol
    samples = f"{len(p.seeds)} sample{'s' if len(p.seeds) > 1 else ''} a face"
    what = (
        f"{p.num_images} faces of split {p.split}, degradation {p.variant}, {samples}, {p.mode} sampling, "
        f"{p.hq_px} px; mean [95 % bootstrap interval over faces]; protocol {p.digest}"
    )
    return [what, *(f"{metric.name} v{metric.version}: {metric.protocol}." for metric in evaluation.metrics)]


def means(evaluation: Evaluation) -> dict[str, float]:
    """Every mean by the name that trackers and tags use, such as `tem.squeezenet_distance`."""
    by_name: dict[str, float] = {}
    for line in evaluation.table:
        for metric, interval in zip(evaluation.metrics, line.intervals, strict=True):
            by_name[f"{line.subject}.{metric_slug(metric)}"] = interval.mean
    return by_name


def faces(evaluation: Evaluation, subject: Subject) -> dict[str, tuple[float, ...]]:
    """The scores of every face by key, in the order of the metrics, averaged over its seeds."""
    return _by_face(evaluation.rows, subject)


def metric_slug(metric: MetricInfo) -> str:
    """A metric's name for trackers and tags, such as `squeezenet_distance`."""
    return metric.name.lower().replace(" ", "_")


def write_evaluation(evaluation: Evaluation, folder: storage.Uri) -> list[str]:
    """Write the files and return their relative paths; the same evaluation writes the same bytes."""
    # `evaluation.json` is written last: a reader that finds it finds the other files too
    files = {"rows.csv": _rows_csv(evaluation)}
    for panel in evaluation.panels:
        files |= {f"panels/{panel.key}/{name}.png": png for name, png in panel.images()}
    if evaluation.panels:
        files["panels.png"] = render_strip(evaluation.panels)
    summary = {
        "protocol": asdict(evaluation.protocol),
        "protocol_digest": evaluation.protocol.digest,
        "metrics": [asdict(metric) for metric in evaluation.metrics],
        "table": [
            {"subject": line.subject, "intervals": list(map(_plain, line.intervals))}
            for line in evaluation.table
        ],
        "panels": [panel.key for panel in evaluation.panels],
    }
    files["evaluation.json"] = (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode()
    for name, data in files.items():
        storage.write_atomic(storage.join(folder, *name.split("/")), data)
    return sorted(files)


def read_evaluation(folder: storage.Uri) -> Evaluation:
    """Read the files that `write_evaluation` wrote; UsageError if there are none."""
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
        metrics=tuple(MetricInfo(**metric) for metric in summary["metrics"]),
        table=tuple(table),
        rows=tuple(_read_rows(storage.read_bytes(storage.join(folder, "rows.csv")))),
        panels=tuple(_read_panel(folder, key) for key in summary["panels"]),
    )


def _intervals(rows: Sequence[Row], subject: Subject) -> tuple[Interval, ...]:
    by_metric = zip(*_by_face(rows, subject).values(), strict=True)
    return tuple(map(bootstrap, by_metric))


def _by_face(rows: Sequence[Row], subject: Subject) -> dict[str, tuple[float, ...]]:
    # rows of one face differ by the seed; each value is one metric
    by_key: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in rows:
        if row.subject == subject:
            by_key[row.key].append(row.values)
    return {key: tuple(map(_mean, zip(*scores, strict=True))) for key, scores in by_key.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _plain(interval: Interval) -> list[float | str]:
    """Mean, low, high, count; an infinite PSNR is written as text, because JSON has no infinity."""
    values = (interval.mean, interval.low, interval.high)
    return [*(value if math.isfinite(value) else str(value) for value in values), interval.count]


def _interval(cell: Sequence[Any]) -> Interval:
    return Interval(mean=float(cell[0]), low=float(cell[1]), high=float(cell[2]), count=int(cell[3]))


def _rows_csv(evaluation: Evaluation) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "subject", "seed", *(metric_slug(metric) for metric in evaluation.metrics)])
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
    images = (storage.read_bytes(storage.join(folder, "panels", key, f"{name}.png")) for name in TITLES)
    return Panel(key, *images)
