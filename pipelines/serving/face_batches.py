"""The faces of all open photos in batches through one cascade, a face of each photo in turn.

So a photo of one face does not wait for all faces of a crowd, and a batch mixes photos. What a face becomes
does not depend on its batch (`pipelines.restoration.face_queue`).
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from diffbfr.errors import one_line
from diffbfr.stages import Mode
from pipelines.restoration.face_queue import FaceDraw, FaceQueue, Failure
from pipelines.restoration.model import LoadedModel
from pipelines.serving.jobs import Job

LINGER_S: Final = 0.05
"""How long a batch that is not full waits for a photo that is just being read."""
_NEW_SHARE: Final = 0.2


class FaceBatches:
    """A thread that runs the faces of jobs, and calls `on_batch` with the jobs of each batch.

    `is_more_coming` says whether another photo is being read, for which a batch that is not full waits.
    """

    def __init__(
        self,
        cascade: LoadedModel,
        mode: Mode,
        size: int,
        on_batch: Callable[[Sequence[Job]], None],
        is_more_coming: Callable[[], bool],
    ) -> None:
        self._cascade = cascade
        self._mode = mode
        self._size = size
        self._on_batch = on_batch
        self._is_more_coming = is_more_coming
        self._arrived: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._turns: deque[tuple[Job, deque[FaceDraw]]] = deque()
        self._owners: dict[FaceDraw, Job] = {}
        self._closing = False
        self._seconds_per_draw = 0.0
        self._thread = threading.Thread(target=self._run, name="restore-faces", daemon=True)
        self._thread.start()

    @property
    def seconds_per_draw(self) -> float:
        """What a face took of late; 0 before the first."""
        return self._seconds_per_draw

    def add(self, job: Job) -> None:
        """Take the faces of an open photo."""
        self._arrived.put(job)

    def close(self, wait_s: float) -> None:
        """Begin no further batch, and wait a little for the one that runs."""
        self._closing = True
        self._arrived.put(None)
        self._thread.join(wait_s)

    def _run(self) -> None:
        waiting = self._new_queue()
        while not self._closing:
            self._receive(0.0 if self._turns or self._owners else None)
            self._fill(waiting)
            if waiting.num_free and self._is_more_coming() and self._receive(LINGER_S):
                continue
            started, draws = time.perf_counter(), list(self._owners)
            try:
                draws = list(waiting.run_batch())
            except Exception as error:  # whatever it is, it is about these faces, and others are waiting
                for draw in draws:
                    draw.result, draw.is_done = Failure("restore_error", one_line(error)), True
                waiting = self._new_queue()
            self._after(draws, time.perf_counter() - started)

    def _new_queue(self) -> FaceQueue:
        return FaceQueue(self._cascade, self._mode, self._size)

    def _receive(self, wait_s: float | None) -> bool:
        """Take in the photos that have come, waiting for one at most so long; whether there was one."""
        some = False
        while True:
            try:
                job = self._arrived.get(block=wait_s != 0.0, timeout=wait_s)
            except queue.Empty:
                return some
            if job is None:
                return True
            some, wait_s = True, 0.0
            self._turns.append((job, deque(job.photo.draws if job.photo is not None else ())))

    def _fill(self, waiting: FaceQueue) -> None:
        """Complete the next batch with a face of each photo in turn."""
        while waiting.num_free and self._turns:
            job, draws = self._turns.popleft()
            if job.is_removed or not draws:
                self._on_batch([job])
                continue
            draw = draws.popleft()
            self._owners[draw] = job
            waiting.add([draw])
            if draws:
                self._turns.append((job, draws))

    def _after(self, draws: Sequence[FaceDraw], seconds: float) -> None:
        if draws:
            measured = seconds / len(draws)
            known = self._seconds_per_draw
            self._seconds_per_draw = known + _NEW_SHARE * (measured - known) if known else measured
        jobs = {id(self._owners[draw]): self._owners[draw] for draw in draws}
        for draw in draws:
            if draw.is_done:
                del self._owners[draw]
        self._on_batch(list(jobs.values()))
