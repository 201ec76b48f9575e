"""Panels of a training: one for each average that it keeps, drawn from the files of the average.

On a cluster a thread of the driver draws them while the ranks train; in one process they are drawn after the
training. The same average gives the same image. Without `training.average_samples` there are no panels.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from diffbfr.errors import one_line
from diffbfr.stages import StageSpec
from pipelines import storage

AVERAGES, PANELS = "averages", "panels"
_POLL_INTERVAL_S = 5.0
_DRAWING = threading.Lock()
"""One panel at a time in a driver, also if stages are trained in parallel: drawing takes one core."""


class TrainingPanels:
    """Draws the panels of one training into `folder/panels`; a context manager around the training.

    `on_panel` is called with the name and the PNG of each panel (`000004000.png`: after so many samples). A
    panel that cannot be drawn is logged and does not fail the training.
    """

    def __init__(
        self,
        folder: str,
        dataset: str,
        stage: StageSpec,
        column: str,
        *,
        in_background: bool,
        on_panel: Callable[[str, bytes], None],
    ) -> None:
        self._folder = folder
        self._dataset = dataset
        self._stage = stage
        self._column = column
        self._on_panel = on_panel
        self._in_background = in_background
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-panels", daemon=True)
        self.seconds = 0.0
        """Processor time of all panels."""

    def __enter__(self) -> Self:
        if self._in_background:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._in_background:
            self._thread.join()
        if kind is None:
            self._draw_new(last=True)

    def _run(self) -> None:
        while not self._ending.wait(_POLL_INTERVAL_S):
            self._draw_new()

    def _draw_new(self, last: bool = False) -> None:
        """Draw the missing panels; with `last` a failure is logged, before that it is retried later."""
        # an average is a folder named by its number of samples; its panel has the same name
        there = set(storage.list_dir(storage.join(self._folder, PANELS)))
        for samples in storage.list_dir(storage.join(self._folder, AVERAGES)):
            if f"{samples}.png" in there or (self._ending.is_set() and not last):
                continue
            try:
                self._draw(samples)
            # the average may be incomplete yet, or the disk full: neither may end a training
            except Exception as error:
                if last:
                    logging.getLogger(__name__).warning(
                        "no panel of %s after %s samples: %s", self._stage.name, samples, one_line(error)
                    )

    def _draw(self, samples: str) -> None:
        from diffbfr.cost.threads import single_thread
        from diffbfr.digests import is_model_file
        from pipelines.evaluation.stage_panel import PanelTask, draw_panel

        weights = storage.fetch_tree(
            storage.join(self._folder, AVERAGES, samples), storage.cache_folder("averages"), is_model_file
        )
        with _DRAWING, single_thread():
            started = time.thread_time()
            data = draw_panel(PanelTask(self._dataset, weights, self._stage, self._column))
            self.seconds += time.thread_time() - started
        storage.write_atomic(storage.join(self._folder, PANELS, f"{samples}.png"), data)
        self._on_panel(f"{samples}.png", data)
