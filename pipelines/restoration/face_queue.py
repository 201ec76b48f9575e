"""Faces of different photos in batches through a cascade; a face that fails, fails alone.

A network that sees a batch at once always gets batches of the same size, the last one padded: kernels round
differently at another size (measured: one level in 1 of 70,000 values), but not with other images in the
batch. On a CPU it computes on one thread, because the number of threads decides the last bits of a sum. So
neither the order of the photos, nor their batch, nor a retry, nor the machine's cores change a byte.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from diffbfr.cost.threads import single_thread
from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.images import Pixels, to_pixels, to_tensor
from diffbfr.metrics.consistency import consistency
from diffbfr.stages import PAPER_FIDELITY, Mode
from pipelines.restoration.model import LoadedModel

MOST_FIDELITY: Final = 1.0


@dataclass(frozen=True)
class Failure:
    """Why a face was not restored, or an output not written."""

    reason: str
    message: str


@dataclass(eq=False)
class FaceDraw:
    """One restoration of one face, from its place in the queue to its result.

    `pixels` (uint8 [lq, lq, 3]) go in with the noise of `key`. With `seen`, the face at the resolution of its
    photo, the result is compared with the photo: below `min_consistency` dB it is drawn once more from the
    lowest starts, and the more consistent of the two is taken.
    """

    pixels: Pixels
    key: str
    fidelity: float = PAPER_FIDELITY
    seen: Pixels | None = None
    min_consistency: float = 0.0
    result: Pixels | Failure | None = None
    consistency: float | None = None
    taken_fidelity: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    is_done: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether the result is less consistent with the photo than was asked for."""
        return self.consistency is not None and self.consistency < self.min_consistency

    def take(self, result: Pixels | Failure) -> None:
        """Take a result; unless this draw is done then, it is to be run once more."""
        self.attempts += 1
        self.is_done = True
        if isinstance(result, Failure) or self.seen is None:
            self.result = result if self.result is None else self.result
            return
        found = consistency(result, self.seen)
        if self.consistency is None or found > self.consistency:
            self.result, self.consistency, self.taken_fidelity = result, found, self.fidelity
        if self.is_doubtful and self.fidelity < MOST_FIDELITY:
            self.fidelity = MOST_FIDELITY
            self.is_done = False


class FaceQueue:
    """Draws that wait for a batch of `size` faces."""

    def __init__(self, cascade: LoadedModel, mode: Mode, size: int) -> None:
        self._cascade = cascade
        self._mode = mode
        self._size = size
        self._waiting: list[FaceDraw] = []

    def add(self, draws: Sequence[FaceDraw]) -> None:
        """Put draws at the end."""
        self._waiting += draws

    @property
    def num_free(self) -> int:
        """How many draws the next batch lacks; 0 if it is full."""
        return max(0, self._size - len(self._waiting))

    def run(self, *, until_empty: bool = False) -> None:
        """Run every full batch; with `until_empty` the rest too."""
        while len(self._waiting) >= self._size or (until_empty and self._waiting):
            self.run_batch()

    def run_batch(self) -> Sequence[FaceDraw]:
        """Run the next batch, full or not; returns its draws, of which some may wait once more."""
        batch = self._waiting[: self._size]
        if not batch:
            return []
        del self._waiting[: self._size]
        started = time.perf_counter()
        with single_thread():
            results = self._restore(batch)
        # networks see batches that mix photos, so each face is charged an equal part of their time
        seconds = (time.perf_counter() - started) / len(batch)
        for draw, result in zip(batch, results, strict=True):
            draw.seconds += seconds
            draw.take(result)
            self._waiting += [] if draw.is_done else [draw]
        return batch

    def _restore(self, batch: Sequence[FaceDraw]) -> list[Pixels | Failure]:
        """Restore a batch, padded to its full size unless the model is batch-invariant.

        If the batch fails, each of its faces is restored alone, so that only the bad ones fail.
        """
        missing = 0 if self._cascade.is_batch_invariant else self._size - len(batch)
        full = [*batch, *[batch[-1]] * missing]
        try:
            restored = self._cascade.restore(
                to_tensor([draw.pixels for draw in full]),
                [draw.key for draw in full],
                self._mode,
                [draw.fidelity for draw in full],
            )
            return list(to_pixels(restored.tem[: len(batch)]))
        except UsageError:
            raise
        except (RuntimeError, DiffBFRError) as error:  # torch raises RuntimeError, also if out of memory
            if len(batch) == 1:
                return [Failure("restore_error", one_line(error))]
        results: list[Pixels | Failure] = []
        for one in batch:
            results += self._restore([one])
        return results
