"""Panels are drawn beside a training, from what it has sealed, and never end it."""

import threading
from pathlib import Path

import pytest

from diffbfr.stages import IRM1_TINY
from pipelines.evaluation import stage_panel
from pipelines.evaluation import training_panels as along
from pipelines.evaluation.stage_panel import PanelTask
from pipelines.evaluation.training_panels import TrainingPanels


def test_a_panel_is_drawn_while_the_training_goes_on_and_one_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawn, whole, shown = threading.Event(), threading.Event(), list[str]()

    def draw(task: PanelTask) -> bytes:
        if task.weights.name == "000000008" or not whole.is_set():
            whole.set()
            raise FileNotFoundError("half an average")
        return task.weights.name.encode()

    def show(name: str, data: bytes) -> None:
        assert (tmp_path / "panels" / name).read_bytes() == data
        shown.append(name)
        drawn.set()

    monkeypatch.setattr(stage_panel, "draw_panel", draw)
    monkeypatch.setattr(along, "_POLL_INTERVAL_S", 0.01)
    averages = tmp_path / "averages"
    with TrainingPanels(str(tmp_path), "data", IRM1_TINY, "", in_background=True, on_panel=show):
        (averages / "000000004").mkdir(parents=True)
        assert drawn.wait(30)  # at the second try, when the average is whole
        (averages / "000000008").mkdir()
        (averages / "000000012").mkdir()
    assert shown == ["000000004.png", "000000012.png"]
    assert caplog.text.count("no panel of irm1 after 000000008 samples: half an average") == 1
