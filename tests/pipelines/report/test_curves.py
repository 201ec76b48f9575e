import math

import pytest

from pipelines.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw, short
from pipelines.report.data import TrainingCurve


def places(polyline: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in polyline.split())]


def test_every_point_lies_inside_the_frame() -> None:
    curve = TrainingCurve("irm1", tuple((8 * i, math.exp(-i / 50) + 0.01 * (i % 7)) for i in range(1, 3000)))
    drawing = draw(curve)
    assert drawing is not None
    for x, y in places(drawing.raw) + places(drawing.smooth):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM
    assert len(places(drawing.raw)) < 1000


def test_a_falling_loss_falls_on_the_page() -> None:
    drawing = draw(TrainingCurve("tem", tuple((i, 1.0 / i) for i in range(1, 50))))
    assert drawing is not None
    heights = [y for _, y in places(drawing.raw)]
    assert heights == sorted(heights)
    assert (drawing.last_x, drawing.last_y) == places(drawing.smooth)[-1]


def test_a_constant_loss_is_a_level_line_and_smoothing_keeps_its_value() -> None:
    drawing = draw(TrainingCurve("tem", tuple((i, 0.25) for i in range(1, 500))))
    assert drawing is not None
    assert len({y for _, y in places(drawing.smooth)}) == 1
    assert drawing.last_value == "0.25"


@pytest.mark.parametrize(
    "points",
    [((8, 0.5),), ((8, 0.5), (16, math.nan), (24, 0.4)), ((8, 0.0), (16, 0.0)), ((8, -1.0), (16, 1e9))],
)
def test_odd_curves_are_drawn_too(points: tuple[tuple[int, float], ...]) -> None:
    drawing = draw(TrainingCurve("irm1", points))
    assert drawing is not None
    assert "nan" not in drawing.raw + drawing.smooth


def test_a_curve_with_nothing_finite_is_left_out() -> None:
    assert draw(TrainingCurve("irm1", ((8, math.nan),))) is None
    assert draw(TrainingCurve("irm1", ())) is None


def test_ticks_are_round_and_within_the_frame() -> None:
    drawing = draw(TrainingCurve("irm1", tuple((i * 10, 0.5 - i * 0.001) for i in range(1, 321))))
    assert drawing is not None
    assert [tick.label for tick in drawing.x_ticks] == ["0", "1k", "2k", "3k"]
    assert 2 <= len(drawing.y_ticks) <= 6
    assert all(TOP <= tick.at <= HEIGHT - BOTTOM for tick in drawing.y_ticks)


def test_numbers_are_written_short() -> None:
    assert [short(value) for value in (12800, 0.0341, 3.2e6, 7, 1.5e9, 0)] == [
        "12.8k",
        "0.0341",
        "3.2M",
        "7",
        "1.5G",
        "0",
    ]
