"""Restore: a unit of photos in, restored images and their committed outcomes out.

Photos are read and decoded in a child process by a thread that runs ahead, their faces pass the cascade in
batches that mix photos (`pipelines.restoration.face_queue`), and another thread composes, encodes and writes
each photo as soon as its last face is there. The noise of a draw is keyed by the content of its photo, the
number of the face and the number of the draw alone, so neither the order of the photos, nor their batch, nor
a retry changes a byte.

A photo that kills its decoder, never ends or exhausts the memory has a row with that reason, and the others
of its unit are restored as if it were not there.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from diffbfr.errors import UsageError, one_line
from diffbfr.images import ImageRefused
from pipelines import storage
from pipelines.cluster.protocol import ReportCounts
from pipelines.restoration.access import file_mode
from pipelines.restoration.aligned_photo import open_aligned
from pipelines.restoration.face_input import read_face_sandboxed, start_reader
from pipelines.restoration.face_queue import FaceQueue, Failure
from pipelines.restoration.model import RestorationModel
from pipelines.restoration.outcomes import UNREADABLE, Outcome, OutputFile, commit_unit
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.whole_input import read_whole_sandboxed, start_whole_reader
from pipelines.restoration.whole_photo import open_whole
from pipelines.restoration.work import OpenPhoto, ReadFile, WorkItem, empty_row, without_output
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError
from pipelines.sources.detector import DetectorRef
from pipelines.sources.sandbox import WorkerFailure
from pipelines.sources.skipping import MESSAGES

_READ_AHEAD: Final = 2
_WRITE_BEHIND: Final = 2
"""Photos that wait decoded or composed, beside those whose faces wait for a batch."""


@dataclass(frozen=True)
class RestoreTask:
    """A unit of photos with different content; `detector` is None for aligned face crops."""

    index: int
    source: PhotoSource
    items: tuple[WorkItem, ...]
    output_uri: str
    request: RestoreRequest
    detector: DetectorRef | None = None


@dataclass(frozen=True)
class BatchReport:
    """The committed outcomes of a unit's photos, in its order."""

    outcomes: tuple[Outcome, ...]

    def counts(self) -> ReportCounts:
        """The photos by status, and the faces that were restored."""
        by_status: Counter[str] = Counter(outcome.row.status for outcome in self.outcomes)
        faces = sum(outcome.row.num_faces for outcome in self.outcomes if outcome.row.status == "restored")
        return ReportCounts(by_status, faces)


class RestoreWorker:
    """Holds a loaded cascade and restores unit after unit with it."""

    def __init__(self, model: RestorationModel) -> None:
        self._model = model
        # one thread, because the child process that decodes belongs to its thread
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-photos")
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-photos")
        self._is_warm = False
        self._cascade = model.load()

    def __call__(self, task: RestoreTask) -> BatchReport:
        """Restore a unit: write its images, then its record."""
        queue = FaceQueue(self._cascade, task.request.mode, task.request.batch_faces)
        outcomes: dict[str, Outcome | Future[Outcome]] = {}
        waiting: list[OpenPhoto] = []
        writing: deque[Future[Outcome]] = deque()
        for number, opened in enumerate(self._read_ahead(task), start=1):
            if isinstance(opened, Outcome):
                outcomes[opened.row.name] = opened
            else:
                waiting.append(opened)
                queue.add(opened.draws)
            queue.run(until_empty=number == len(task.items))
            for photo in list(filter(_is_restored, waiting)):
                waiting.remove(photo)
                while len(writing) >= _WRITE_BEHIND:
                    writing.popleft().result()
                writing.append(self._writer.submit(_write, task, photo))
                outcomes[photo.file.item.ref.name] = writing[-1]
        results = [outcomes[item.ref.name] for item in task.items]
        done = tuple(found if isinstance(found, Outcome) else found.result() for found in results)
        commit(task.output_uri, done, task.request)
        return BatchReport(done)

    def _read_ahead(self, task: RestoreTask) -> Iterator[OpenPhoto | Outcome]:
        """The unit's photos in their order, read and decoded ahead of their use."""
        reading = _Reading(task, self._model.lq_px, self._model.hq_px)
        if not self._is_warm:
            self._reader.submit(reading.warm_up)
            self._is_warm = True
        pending: deque[Future[OpenPhoto | Outcome]] = deque()
        try:
            for item in task.items:
                pending.append(self._reader.submit(reading.open, item))
                if len(pending) > _READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for photo in pending:
                photo.cancel()


class _Reading:
    """How the photos of a unit are read: as aligned crops, or whole with a detector."""

    def __init__(self, task: RestoreTask, lq_px: int, hq_px: int) -> None:
        self._source = task.source
        self._request = task.request
        self._lq_px = lq_px
        self._hq_px = hq_px
        self._weights: Path | None = None
        if task.request.photos is not None:
            if task.detector is None:
                raise UsageError("the task has no face detector; expected one for whole photos")
            self._weights = task.detector.fetch()

    def warm_up(self) -> None:
        """Start the child process of this thread."""
        if self._weights is None:
            start_reader()
        else:
            start_whole_reader()

    def open(self, item: WorkItem) -> OpenPhoto | Outcome:
        """Read and decode a photo; the outcome instead if it is refused."""
        started = time.perf_counter()
        try:
            data = self._source.read(item.ref)
        except PhotoUnreadableError as error:
            return without_output(empty_row(item.ref, "quarantined", UNREADABLE, one_line(error)), item.ref)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            opened = self._decode(data, lambda: ReadFile(item, data, sha256, time.perf_counter() - started))
        except ImageRefused as error:
            reason, message = str(error.reason_code), one_line(error)
        else:
            if not isinstance(opened, WorkerFailure):
                return opened
            reason, message = opened.reason, f"decoding it failed: {opened.message}"
        row = replace(empty_row(item.ref, "quarantined", reason, message), num_bytes=len(data), sha256=sha256)
        return without_output(replace(row, seconds=time.perf_counter() - started), item.ref)

    def _decode(self, data: bytes, file: Callable[[], ReadFile]) -> OpenPhoto | WorkerFailure:
        request = self._request
        if self._weights is None:
            read = read_face_sandboxed(data, self._lq_px, self._hq_px)
            return read if isinstance(read, WorkerFailure) else open_aligned(file(), read, request)
        assert request.photos is not None
        whole = read_whole_sandboxed(data, self._weights, request.photos, self._lq_px, self._hq_px)
        return whole if isinstance(whole, WorkerFailure) else open_whole(file(), whole, request)


def skipped_outcome(ref: PhotoRef) -> Outcome:
    """Return the outcome of an input that is no photo by its name; it is not read."""
    return without_output(empty_row(ref, "skipped", ref.skipped, MESSAGES[ref.skipped]), ref)


def commit(output_uri: str, outcomes: tuple[Outcome, ...], request: RestoreRequest) -> None:
    """Write the record of a unit."""
    try:
        commit_unit(output_uri, outcomes, request)
    except OSError as error:
        raise storage.place_error(output_uri, error) from error


def write_outputs(output_uri: str, contents: Mapping[str, bytes], mode: int) -> Failure | None:
    """Write the files of one photo; the failure if the file system refuses one of them, and none is left.

    A PlaceError if the file system refuses every file, such as a full disk: no photo is at fault then.
    """
    written: list[str] = []
    for output, content in contents.items():
        place = storage.join(output_uri, output)
        try:
            storage.write_atomic(place, content, within=output_uri, mode=mode)
            written.append(place)
        except OSError as error:
            if not storage.is_about_one_file(error, writing=True):
                raise storage.place_error(output_uri, error) from error
            for earlier in written:
                storage.remove_file(earlier, within=output_uri)
            return Failure(
                "output_refused",
                f"{output} cannot be written ({error.strerror}); expected a name that the file system of the "
                "output takes; rename the input, or name an output elsewhere",
            )
    return None


def output_file(name: str, content: bytes) -> OutputFile:
    """The record of a written file."""
    return OutputFile(name, len(content), hashlib.sha256(content).hexdigest())


def _is_restored(photo: OpenPhoto) -> bool:
    return all(draw.is_done for draw in photo.draws)


def _write(task: RestoreTask, photo: OpenPhoto) -> Outcome:
    """Compose, encode and write a photo."""
    started = time.perf_counter()
    item = photo.file.item
    try:
        finished = photo.finish(task.request)
    except ImageRefused as error:
        row = photo.file.row("failed", str(error.reason_code), one_line(error))
        return without_output(row, item.ref)
    row = finished.row
    if not finished.files:
        return without_output(row, item.ref)
    refusal = write_outputs(task.output_uri, finished.files, file_mode(task.source.uri, item.ref.uri))
    if refusal is not None:
        failed = replace(row, status="failed", reason=refusal.reason, message=refusal.message, num_faces=0)
        return without_output(replace(failed, spread=0.0), item.ref)
    first, *others = (output_file(name, content) for name, content in finished.files.items())
    row = replace(
        row,
        output=first.name,
        output_sha256=first.sha256,
        model_digest=task.request.model if row.num_faces else "",
        seconds=row.seconds + time.perf_counter() - started,
    )
    return Outcome(row, item.ref.fingerprint, first.num_bytes, tuple(others), finished.faces)
