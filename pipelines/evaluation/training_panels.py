"""Panels along a training: one for each average that it keeps, from the sealed files and so beside the
training, never in its way.

On a cluster a thread of the driver draws them while the ranks train; in one process they are drawn when the
training is done. The same average gives the same picture. Without `training.average_samples` there are none.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from diffbfr.stages import StageSpec
from pipelines import storage

AVERAGES, PANELS = "averages", "panels"
_LOOK_EVERY_S = 5.0
_ONE = threading.Lock()
"""One panel at a time in a driver, whatever is trained side by side: it takes one core."""


class TrainingPanels:
    """Draws the panels of one training into `folder/panels`; a context manager around it.

    `on_panel` hears of each, by its name (`000004000.png`: after so many samples). A panel that cannot be
    drawn fails no training.
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
        self._folder, self._dataset, self._stage, self._column, self._on_panel = (
            folder,
            dataset,
            stage,
            column,
            on_panel,
        )
        self._in_background = in_background
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="panels", daemon=True)
        self.seconds = 0.0
        """Of processor time, all together."""

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
        while not self._ending.wait(_LOOK_EVERY_S):
            self._draw_new()

    def _draw_new(self, last: bool = False) -> None:
        """Draw what is missing; with `last` also say what could not be drawn."""
        there = set(storage.list_dir(storage.join(self._folder, PANELS)))
        for samples in storage.list_dir(storage.join(self._folder, AVERAGES)):
            if f"{samples}.png" in there or (self._ending.is_set() and not last):
                continue
            try:
                self._draw(samples)
            # an average that is not whole yet, or a disk that refuses: no reason to end a training
            except Exception as error:
                if last:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    logging.getLogger(__name__).warning(
                        "no panel of %s after %s samples: %s", self._stage.name, samples, reason
                    )

    def _draw(self, samples: str) -> None:
        from diffbfr.cost.threads import single_thread
        from pipelines.evaluation.stage_panel import PanelTask, draw_panel

        weights = storage.fetch_tree(
            storage.join(self._folder, AVERAGES, samples), storage.cache_folder("averages")
        )
        with _ONE, single_thread():
            started = time.thread_time()
            data = draw_panel(PanelTask(self._dataset, weights, self._stage, self._column))
            self.seconds += time.thread_time() - started
        storage.write_atomic(storage.join(self._folder, PANELS, f"{samples}.png"), data)
        self._on_panel(f"{samples}.png", data)
