"""Layout of a training curve: polylines and ticks in SVG units, without a plotting library."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from pipelines.report.data import TrainingCurve

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
_MAX_POINTS = 400
_LOG_FROM_RATIO = 6.0


@dataclass(frozen=True)
class Tick:
    """A tick on an axis: its position in SVG units and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """A curve in SVG units: `raw` and `smooth` are polylines; `last_*` is the end of the smooth one."""

    stage: str
    raw: str
    smooth: str
    last_x: float
    last_y: float
    last_value: str
    samples: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw(curve: TrainingCurve) -> Drawing | None:
    """Lay out a curve; None if it has no finite value.

    The loss axis is logarithmic if the largest loss is more than six times the smallest.
    """
    points = [(float(x), y) for x, y in curve.points if math.isfinite(y)]
    if not points:
        return None
    smooth = _smoothed(points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = low > 0 and high / low > _LOG_FROM_RATIO
    place_x = _scale(0.0, max(points[-1][0], 1.0), LEFT, WIDTH - RIGHT)
    pad = 0.0 if logarithmic else (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    place_y = _scale(low, high, HEIGHT - BOTTOM, TOP, math.log if logarithmic else float)
    y_values = _log_ticks(low, high) if logarithmic else _ticks(low, high, 4)
    return Drawing(
        stage=curve.stage,
        raw=_polyline(points, place_x, place_y),
        smooth=_polyline(smooth, place_x, place_y),
        last_x=round(place_x(smooth[-1][0]), 1),
        last_y=round(place_y(smooth[-1][1]), 1),
        last_value=short(smooth[-1][1]),
        samples=short(points[-1][0]),
        x_ticks=tuple(
            Tick(round(place_x(x), 1), short(x)) for x in _ticks(0, points[-1][0], 4) if x <= points[-1][0]
        ),
        y_ticks=tuple(Tick(round(place_y(y), 1), short(y)) for y in y_values),
    )


def short(value: float) -> str:
    """A number with three significant digits: 12.8k, 0.034, 3.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential moving average over a twentieth of the run, without bias at its start."""
    keep = 1 - 1 / max(1.0, len(points) / 20)
    total = weight = 0.0
    smooth = []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        smooth.append((x, total / weight))
    return smooth


def _polyline(
    points: Sequence[tuple[float, float]],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> str:
    # a page shows some hundred pixels, so more points only make the file larger
    stride = max(1, len(points) // _MAX_POINTS)
    kept = [*points[:-1:stride], points[-1]]
    return " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in kept)


def _scale(
    low: float, high: float, start: float, end: float, warp: Callable[[float], float] = float
) -> Callable[[float], float]:
    span = (warp(high) - warp(low)) or 1.0
    return lambda value: start + (warp(value) - warp(low)) / span * (end - start)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside a range, in about `count` steps."""
    # the step is 1, 2 or 5 times a power of ten
    rough = (high - low) / count or 1.0
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Those of 1, 2, 5, 10, 20, ... inside a range; the powers of ten alone if there are three of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**decade for decade, factor in product(decades, (1, 2, 5))]
    inside = [tick for tick in every if low <= tick <= high]
    tens = [tick for tick in inside if math.isclose(10 ** round(math.log10(tick)), tick)]
    return tens if len(tens) >= 3 else inside
