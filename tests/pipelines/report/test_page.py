import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbfr.images import encode_png
from diffbfr.metrics import psnr, squeezenet, ssim
from pipelines.evaluation.scores import Evaluation, aggregate, protocol_lines
from pipelines.evaluation.types import EvaluateReport, EvaluateTask, Panel, Row
from pipelines.execution.model_ref import ModelRef
from pipelines.progress import duration
from pipelines.report import LineageLink, ReportData, RestoredPhoto, StepLine, TrainingCurve, write_report
from pipelines.report.page import render

SCORES = {
    "lq": (22.0, 0.60, 0.60),
    "irm1": (22.8, 0.61, 0.40),
    "irm2": (22.1, 0.59, 0.35),
    "tem": (21.5, 0.62, 0.30),
}


def picture(seed: int, px: int = 32) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, size=(px, px, 3), dtype=np.uint8))


@pytest.fixture
def evaluation() -> Evaluation:
    keys = ("face-1", "face-2")
    rows = [
        Row(key, subject, None if subject == "lq" else 0, values)
        for key in keys
        for subject, values in SCORES.items()
    ]  # type: ignore[arg-type]
    panels = tuple(Panel(key, *(picture(i) for i in range(5))) for key in keys)
    task = EvaluateTask(0, "dataset", ModelRef("cascade", "d" * 64, 8, 32), keys)
    report = EvaluateReport(0, (psnr.INFO, ssim.INFO, squeezenet.INFO), tuple(rows), panels, 1.0)
    return aggregate([task], [report], "c" * 64, "test", 32)


@pytest.fixture
def data(evaluation: Evaluation) -> ReportData:
    return ReportData(
        recipe="smoke",
        command="diffbfr run --recipe smoke",
        faces="synthetic:count=4",
        created="2026-01-02 03:04",
        seconds=75.0,
        evaluation=evaluation,
        restored=(
            RestoredPhoto("a.jpg", "restored", picture(6), picture(7)),
            RestoredPhoto(
                "<script>alert(1)</script>.png", "quarantined", None, None, "the file is no picture"
            ),
        ),
        counts=(("restored", 1), ("quarantined", 1)),
        curves=(TrainingCurve("irm1", ((8, 0.5), (16, 0.4))), TrainingCurve("tem", ())),
        lineage=(
            (LineageLink("photos", "1" * 64),),
            (LineageLink("irm1", "2" * 64, "diffbfr-irm1@1"), LineageLink("tem", "3" * 64)),
        ),
        steps=(StepLine("shard", "HIT", 2.0), StepLine("train-irm1", "RUN", 60.0, "training.seed 0 -> 1")),
        notes=("smoke starts from the packaged cascade.",),
    )


class Reader(HTMLParser):
    """Checks that every element is closed in order and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("img", "meta", "input", "line", "polyline", "circle", "rect", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline", "circle", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_is_sound_html_and_loads_nothing_from_elsewhere(data: ReportData) -> None:
    page = render(data)
    reader = read(page)
    assert len(reader.loads) == 2 * 5 + 2
    assert all(source.startswith("data:image/") for source in reader.loads)
    assert "://" not in page
    assert "url(" not in page


def test_pictures_come_before_numbers_and_arrive_unchanged(data: ReportData) -> None:
    page = render(data)
    assert (
        page.index("Before and after")
        < page.index("The restored archive")
        < page.index("How good it is")
        < page.index("Where it comes from")
    )
    sources = [base64.b64decode(source.partition(",")[2]) for source in read(page).loads]
    assert data.evaluation is not None
    assert sources[:5] == [png for _, png in data.evaluation.panels[0].images()]
    assert sources[10:] == [picture(6), picture(7)]


def test_the_table_tells_values_changes_and_protocol(data: ReportData) -> None:
    text = read(render(data)).text
    assert data.evaluation is not None
    for words in (
        "PSNR (dB) ↑",
        "squeezenet distance ↓",
        "21.50",
        "−0.50",
        "0.300",
        "+0.020",
        *protocol_lines(data.evaluation),
    ):
        assert words in text
    assert "LPIPS" not in text


def test_a_loss_is_marked_as_one_and_the_best_cell_as_best(data: ReportData) -> None:
    page = render(data)
    assert re.search(r'change bad">−0\.50<', page)
    assert re.search(r'change good">−0\.300<', page)
    assert re.search(r'class="best"><b>22\.80<', page)
    assert re.search(r'class="best"><b>0\.300<', page)


def test_what_the_photos_are_called_is_text_and_not_markup(data: ReportData) -> None:
    page = render(data)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png" in page
    assert "the file is no picture" in page


def test_steps_lineage_and_curves_are_told(data: ReportData) -> None:
    text = read(render(data)).text
    told = (
        "train-irm1",
        "RUN",
        "HIT",
        "1 min 00 s",
        "training.seed 0 -> 1",
        "222222222222",
        "diffbfr-irm1@1",
        "after 16 samples",
        "1 min 15 s",
    )
    assert [words for words in told if words not in text] == []


def test_a_run_without_scores_photos_or_curves_has_a_page_too(data: ReportData) -> None:
    bare = ReportData("smoke", "diffbfr run", "faces", "2026-01-02", 1.0, None)
    text = read(render(bare)).text
    assert "Before and after" not in text
    assert "smoke" in text
    assert read(render(replace(data, evaluation=None))).loads


def test_a_large_picture_is_reduced_to_what_a_screen_shows(data: ReportData) -> None:
    page = render(
        replace(
            data, evaluation=None, restored=(RestoredPhoto("big.png", "restored", picture(1, 900), None),)
        )
    )
    source = read(page).loads[0]
    assert source.startswith("data:image/webp")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert max(shown.size) == 640


def test_an_infinite_psnr_is_written_as_such(evaluation: Evaluation, data: ReportData) -> None:
    line = evaluation.table[3]
    perfect = replace(
        line,
        intervals=(
            replace(line.intervals[0], mean=math.inf, low=math.inf, high=math.inf),
            *line.intervals[1:],
        ),
    )
    assert "∞" in render(
        replace(data, evaluation=replace(evaluation, table=(*evaluation.table[:3], perfect)))
    )


def test_the_same_run_writes_the_same_bytes(data: ReportData, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", data)
    write_report(str(tmp_path / "b.html"), data)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text() == render(data)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0 s"),
        (9.94, "10 s"),
        (42.2, "42 s"),
        (99.4, "1 min 39 s"),
        (312.4, "5 min 12 s"),
        (7325, "2 h 02 min"),
        (3599.6, "1 h 00 min"),
    ],
)
def test_durations_are_written_as_progress_lines_write_them(
    seconds: float, words: str, data: ReportData
) -> None:
    assert duration(seconds) == words
    assert words in read(render(replace(data, seconds=seconds))).text
