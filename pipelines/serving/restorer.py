"""Moves photos through reading, one cascade for all of them, and writing; the restoring is the product's own.

```
arrive -> read, decode, find faces (threads, each with a child process) -> faces of all photos in batches
       -> paste, encode (threads) -> kept in memory until fetched, or too old
```
"""

import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from diffbfr.errors import one_line
from diffbfr.stages import Mode
from pipelines.restoration.model import RestorationModel
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.photo_reading import PhotoReader
from pipelines.restoration.request import PhotoSettings, RestoreRequest
from pipelines.restoration.work import Finished, OpenPhoto, empty_row, finish_photo, is_restored
from pipelines.serving.face_batches import FaceBatches
from pipelines.serving.jobs import Job
from pipelines.serving.store import JobStore, StoreLimits
from pipelines.serving.threads import DaemonPool
from pipelines.sources.sandboxed_images import shown_image
from pipelines.storage.machine import usable_cores

MOST_OPEN: Final = 12
"""Photos that are decoded at once: each may have 100 million pixels."""
SHOWN_PX: Final = 2048
"""The longer side of a picture on the page."""
_CLOSE_S: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedCascade:
    """What every request of a server shares: the cascade, the detector's weights, and how they are used.

    `mode`, `seed` and `batch_faces` are those of `diffbfr restore`, so that its bytes are made. `note` is
    said on the page.
    """

    model: RestorationModel
    weights: Path
    detector_sha256: str
    mode: Mode = "fast"
    seed: int = 0
    batch_faces: int = 4
    note: str = ""

    def request(self, samples: int, settings: PhotoSettings) -> RestoreRequest:
        """The request of one photo."""
        return RestoreRequest(
            input="",
            model=self.model.digest,
            mode=self.mode,
            seed=self.seed,
            batch_faces=self.batch_faces,
            aligned=False,
            hq_px=self.model.hq_px,
            samples=samples,
            photos=replace(settings, detector=self.detector_sha256),
        )


class Restorer:
    """Restores photos that arrive at any time; its methods may be called from any thread."""

    def __init__(self, served: ServedCascade, limits: StoreLimits | None = None) -> None:
        self.served = served
        self.store = JobStore(limits or StoreLimits())
        self._numbers = itertools.count()
        self._num_taken = 0
        self._reading = 0
        self._reading_lock = threading.Lock()
        self._open = threading.Semaphore(MOST_OPEN)
        self._opened: set[str] = set()
        cores = usable_cores()
        self._batches = FaceBatches(
            served.model.load(), served.mode, served.batch_faces, self._after_batch, lambda: self._reading > 0
        )
        self._readers = DaemonPool(max(1, min(4, cores - 1)), "read-photos")
        self._writers = DaemonPool(max(1, min(2, cores // 2)), "write-photos")
        self._pictures = DaemonPool(1, "show-pictures")

    def submit(self, job: Job) -> None:
        """Hold a photo, and restore it when its turn comes."""
        job.number = next(self._numbers)
        self.store.add(job)
        self._readers.submit(self._read, job)

    def picture(self, data: bytes) -> "Future[bytes | None]":
        """An image file as one that every browser shows; None if it cannot be shown."""
        return self._pictures.submit(shown_image, data, SHOWN_PX)

    def num_before(self, job: Job) -> int:
        """How many photos are to be read before this one."""
        return max(0, job.number - self._num_taken)

    def seconds_left(self, num_draws: int) -> float:
        """About how long so many faces of one photo take, if no other comes between; 0 if unknown."""
        return num_draws * self._batches.seconds_per_draw

    def close(self) -> None:
        """Begin nothing new, and wait a little for what is being done."""
        for pool in (self._readers, self._writers, self._pictures):
            pool.close(_CLOSE_S / 4)
        self._batches.close(_CLOSE_S)

    def _read(self, job: Job) -> None:
        if not job.is_removed:
            self._acquire(job)
        with self._reading_lock:
            self._num_taken = max(self._num_taken, job.number + 1)
            self._reading += 1
        try:
            if job.is_removed:
                self._release(job)
                return
            job.move("reading")
            model = self.served.model
            reader = PhotoReader(job.request, model.lq_px, model.hq_px, self.served.weights)
            opened = reader.open(job.item, job.data)
        except Exception as error:
            self._fail(job, error)
        else:
            self._take_opened(job, opened)
        finally:
            with self._reading_lock:
                self._reading -= 1

    def _take_opened(self, job: Job, opened: "OpenPhoto | Outcome") -> None:
        if isinstance(opened, Outcome):
            self._end(job, Finished(opened.row))
        elif opened.draws:
            job.move("restoring", opened)
            self._batches.add(job)
        else:
            job.move("writing", opened)
            self._writers.submit(self._write, job)

    def _after_batch(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            photo = job.photo
            if job.is_removed:
                self._release(job)
            elif photo is not None and is_restored(photo):
                job.move("writing")
                self._writers.submit(self._write, job)
            else:
                job.progress()

    def _write(self, job: Job) -> None:
        photo = job.photo
        try:
            if photo is None or job.is_removed:
                self._release(job)
                return
            finished = finish_photo(photo, job.request)
        except Exception as error:
            self._fail(job, error)
        else:
            self._end(job, finished)

    def _fail(self, job: Job, error: Exception) -> None:
        """End a photo whose error nobody foresaw; the others go on."""
        _log.exception("a photo failed", exc_info=error)
        message = f"{type(error).__name__}: {one_line(error)}"
        self._end(job, Finished(empty_row(job.item.ref, "failed", "internal_error", message)))

    def _end(self, job: Job, finished: Finished) -> None:
        self._release(job)
        job.end(finished)
        self.store.end(job)

    def _acquire(self, job: Job) -> None:
        self._open.acquire()
        self._opened.add(job.id)

    def _release(self, job: Job) -> None:
        """Let the next photo be decoded; a second call for the same job does nothing."""
        try:
            self._opened.remove(job.id)
        except KeyError:
            return
        self._open.release()
