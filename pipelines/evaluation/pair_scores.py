"""The result of an evaluation of pairs: what was measured under which card, and its files.

FOLDER/scores.json    the card, the data, the versions, a line for each metric; written last
FOLDER/rows.csv       a row for each picture, a column for each metric of single pictures
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from diffbfr.errors import UsageError
from diffbfr.metrics.cards import ProtocolCard
from diffbfr.metrics.info import MetricInfo
from diffbfr.metrics.intervals import Interval, bootstrap
from diffbfr.spec import from_dict
from diffbfr.text import format_columns
from pipelines import storage
from pipelines.evaluation.scores import format_interval
from pipelines.evaluation.set_scores import SetScore

SCORES: Final = "scores.json"
ROWS: Final = "rows.csv"
FORMAT: Final = 1


@dataclass(frozen=True)
class MetricLine:
    """One metric: an interval over pictures, or a value for all, or the reason why there is none."""

    key: str
    info: MetricInfo
    interval: Interval | None = None
    score: SetScore | None = None
    unavailable: str = ""

    @property
    def value(self) -> float | None:
        """The mean over pictures, or the value for all."""
        if self.interval is not None:
            return self.interval.mean
        return self.score.value if self.score is not None else None


@dataclass(frozen=True)
class EvaluatedData:
    """The data of an evaluation. `follows_card` is false where the card wants another number of pictures."""

    restored: str
    reference: str
    lq: str | None
    num_pairs: int
    keys_sha256: str
    height: int
    width: int
    follows_card: bool
    statistics: str


@dataclass(frozen=True)
class PairScores:
    """The whole result.

    `weights` are the digests of the networks' files by metric, `versions` those of the libraries, `seconds`
    the time of each probe a picture. `rows` holds a column a metric, each with a value a key.
    """

    card: ProtocolCard
    data: EvaluatedData
    lines: tuple[MetricLine, ...]
    weights: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    keys: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]

    def line(self, key: str) -> MetricLine | None:
        """The line of a metric, None if the evaluation has none."""
        return next((line for line in self.lines if line.key == key), None)


def pair_lines(
    infos: Mapping[str, MetricInfo],
    missing: Mapping[str, str],
    keys: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    scores: Mapping[str, SetScore],
) -> tuple[MetricLine, ...]:
    """The lines of a table: intervals over pictures, values for all, and why a metric is missing.

    A metric that is undefined for a picture has no mean: over the other pictures it would look like one.
    """
    lines = []
    for key, info in infos.items():
        if key in missing:
            lines.append(MetricLine(key, info, unavailable=missing[key]))
        elif key in scores:
            lines.append(MetricLine(key, info, score=scores[key]))
        elif undefined := [name for name, value in zip(keys, rows[key], strict=True) if math.isnan(value)]:
            reason = f"undefined for {len(undefined)} of {len(keys)} pictures, the first is {undefined[0]}"
            lines.append(MetricLine(key, info, unavailable=reason))
        else:
            lines.append(MetricLine(key, info, interval=bootstrap(rows[key])))
    return tuple(lines)


def format_scores(scores: PairScores) -> str:
    """The table as text, then the card, the data, and the protocol of every metric."""
    body = [(line.info.label, _arrow(line.info), format_line(line)) for line in scores.lines]
    table = format_columns([("metric", "", "mean [95 % interval over pictures], or value"), *body])
    return "\n".join([table, "", *protocol_text(scores)])


def format_line(line: MetricLine) -> str:
    """The value of a metric with its interval or deviation, or the reason why it has none."""
    if line.unavailable:
        return f"unavailable: {line.unavailable}"
    if line.interval is not None:
        return format_interval(line.interval)
    assert line.score is not None
    deviation = f" +- {line.score.deviation:.3f}" if line.score.deviation else ""
    note = f" ({line.score.note})" if line.score.note else ""
    return f"{line.score.value:.3f}{deviation}{note}"


def protocol_text(scores: PairScores) -> list[str]:
    """Lines that say what was measured: card, data, versions, and each metric's protocol."""
    card, data = scores.card, scores.data
    wanted = "" if data.follows_card else f"; NOT the card's {card.num_pairs} pairs"
    versions = ", ".join(f"{name} {version}" for name, version in scores.versions.items())
    return [
        f"card {card.name} v{card.version} ({card.digest}): {card.data}.",
        f"degradation: {card.degradation}. crop: {card.crop}. colour: {card.colour}.",
        f"{data.num_pairs} pairs of {data.width} x {data.height}{wanted}; distributions against "
        f"{data.statistics}.",
        f"versions: {versions}.",
        *(
            f"{line.info.name} v{line.info.version}: {line.info.protocol}."
            for line in scores.lines
            if not line.unavailable
        ),
    ]


def write_pair_scores(scores: PairScores, folder: storage.Uri) -> None:
    """Write the files; the same result writes the same bytes, but for the seconds."""
    storage.write_atomic(storage.join(folder, ROWS), _rows_csv(scores))
    storage.write_atomic(
        storage.join(folder, SCORES), (json.dumps(to_json(scores), indent=1) + "\n").encode()
    )


def to_json(scores: PairScores) -> dict[str, Any]:
    """The result as JSON values; infinity, which a PSNR may be, is text."""
    return {
        "format": FORMAT,
        "card": asdict(scores.card),
        "card_digest": scores.card.digest,
        "data": asdict(scores.data),
        "metrics": [_plain_line(line) for line in scores.lines],
        "weights": dict(scores.weights),
        "versions": dict(scores.versions),
        "seconds_per_picture": dict(scores.seconds),
    }


def read_pair_scores(folder: storage.Uri) -> PairScores:
    """Read a result; UsageError if there is none, or if it is not of this format."""
    place = storage.join(folder, SCORES)
    if not storage.exists(place):
        raise UsageError(
            f"no {SCORES} in {folder}; expected an evaluation of pairs; make one with `diffbfr evaluate "
            "--restored ... --reference ...`"
        )
    try:
        stored = storage.read_json(place)
        keys, rows = _read_rows(storage.read_bytes(storage.join(folder, ROWS)).decode())
        card = from_dict(ProtocolCard, stored["card"], f"{place}: card")
        if stored["format"] != FORMAT or stored["card_digest"] != card.digest:
            raise UsageError(f"{place} is of another format, or its card was changed; evaluate again")
        return PairScores(
            card=card,
            data=from_dict(EvaluatedData, stored["data"], f"{place}: data"),
            lines=tuple(map(_read_line, stored["metrics"])),
            weights=MappingProxyType(stored["weights"]),
            versions=MappingProxyType(stored["versions"]),
            seconds=MappingProxyType(stored["seconds_per_picture"]),
            keys=keys,
            rows=rows,
        )
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{folder} holds no readable evaluation of pairs ({error}); expected {SCORES} and {ROWS} as "
            "they were written; evaluate again"
        ) from error


def _arrow(info: MetricInfo) -> str:
    return "↑" if info.better == "higher" else "↓"


def _plain_line(line: MetricLine) -> dict[str, Any]:
    plain: dict[str, Any] = {"key": line.key, "info": asdict(line.info)}
    if line.interval is not None:
        plain["interval"] = {name: _plain(value) for name, value in asdict(line.interval).items()}
    if line.score is not None:
        plain["score"] = asdict(line.score)
    if line.unavailable:
        plain["unavailable"] = line.unavailable
    return plain


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _read_line(plain: Mapping[str, Any]) -> MetricLine:
    interval, score = plain.get("interval"), plain.get("score")
    return MetricLine(
        plain["key"],
        MetricInfo(**plain["info"]),
        None if interval is None else _read_interval(interval),
        None if score is None else SetScore(**score),
        plain.get("unavailable", ""),
    )


def _read_interval(plain: Mapping[str, Any]) -> Interval:
    mean, low, high = (float(plain[name]) for name in ("mean", "low", "high"))
    return Interval(mean, low, high, int(plain["count"]))


def _rows_csv(scores: PairScores) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", *scores.rows])
    columns = [map(repr, column) for column in scores.rows.values()]
    writer.writerows(zip(scores.keys, *columns, strict=True))
    return text.getvalue().encode("utf-8", "surrogatepass")


def _read_rows(text: str) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    head, *lines = list(csv.reader(io.StringIO(text)))
    keys = tuple(line[0] for line in lines)
    columns = zip(*(line[1:] for line in lines), strict=True)
    return keys, {name: tuple(map(float, column)) for name, column in zip(head[1:], columns, strict=True)}
