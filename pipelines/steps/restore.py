"""Restore: a unit of photos in, restored images and their committed outcomes out.

Photos are read and decoded in a child process by a thread that runs ahead, their faces pass the cascade in
batches that mix photos (`pipelines.restoration.face_queue`), and another thread composes, encodes and writes
each photo as soon as its last face is there. The noise of a draw is keyed by the content of its photo, the
number of the face and the number of the draw alone, so neither the order of the photos, nor their batch, nor
a retry changes a byte.

A photo that kills its decoder, never ends or exhausts the memory has a row with that reason, and the others
of its unit are restored as if it were not there.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from diffbfr.errors import one_line
from pipelines import storage
from pipelines.cluster.protocol import ReportCounts
from pipelines.restoration.access import file_mode
from pipelines.restoration.face_queue import FaceQueue, Failure
from pipelines.restoration.identity import IdentityCheck
from pipelines.restoration.journal import commit_unit
from pipelines.restoration.model import RestorationModel
from pipelines.restoration.outcomes import UNREADABLE, Outcome, OutputFile
from pipelines.restoration.photo_reading import PhotoReader
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.work import (
    OpenPhoto,
    WorkItem,
    empty_row,
    finish_photo,
    is_restored,
    sha256_of,
    without_output,
)
from pipelines.sources import PhotoSource, PhotoUnreadableError
from pipelines.sources.weights_ref import WeightsRef

_READ_AHEAD: Final = 2
_WRITE_BEHIND: Final = 2
"""Photos that wait decoded or composed, beside those whose faces wait for a batch."""


@dataclass(frozen=True)
class RestoreTask:
    """A unit of photos with different content; `detector` is None for aligned face crops.

    With `identity`, the weights of a face network, the faces before and after are compared.
    """

    index: int
    source: PhotoSource
    items: tuple[WorkItem, ...]
    output_uri: str
    request: RestoreRequest
    detector: WeightsRef | None = None
    identity: WeightsRef | None = None


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
        self._identity: tuple[WeightsRef, IdentityCheck] | None = None
        self._cascade = model.load()

    def __call__(self, task: RestoreTask) -> BatchReport:
        """Restore a unit: write its images, then its record."""
        identity = self._identity_of(task)
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
            for photo in list(filter(is_restored, waiting)):
                waiting.remove(photo)
                while len(writing) >= _WRITE_BEHIND:
                    writing.popleft().result()
                writing.append(self._writer.submit(_write, task, photo, identity))
                outcomes[photo.file.item.ref.name] = writing[-1]
        results = [outcomes[item.ref.name] for item in task.items]
        done = tuple(found if isinstance(found, Outcome) else found.result() for found in results)
        commit(task.output_uri, done, task.request)
        return BatchReport(done)

    def _identity_of(self, task: RestoreTask) -> IdentityCheck | None:
        """The comparison of a task, loaded once."""
        if task.identity is None:
            return None
        if self._identity is None or self._identity[0] != task.identity:
            self._identity = task.identity, IdentityCheck(task.identity.fetch())
        return self._identity[1]

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
    """How the photos of a unit are read from their source."""

    def __init__(self, task: RestoreTask, lq_px: int, hq_px: int) -> None:
        self._source = task.source
        weights = None if task.detector is None else task.detector.fetch()
        self._reader = PhotoReader(task.request, lq_px, hq_px, weights)
        self.warm_up = self._reader.warm_up

    def open(self, item: WorkItem) -> OpenPhoto | Outcome:
        """Read and decode a photo; the outcome instead if it is refused."""
        started = time.perf_counter()
        try:
            data = self._source.read(item.ref)
        except PhotoUnreadableError as error:
            return without_output(empty_row(item.ref, "quarantined", UNREADABLE, one_line(error)), item.ref)
        return self._reader.open(item, data, time.perf_counter() - started)


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
    return OutputFile(name, len(content), sha256_of(content))


def _write(task: RestoreTask, photo: OpenPhoto, identity: IdentityCheck | None) -> Outcome:
    """Compose, encode and write a photo."""
    started = time.perf_counter()
    item = photo.file.item
    finished = finish_photo(photo, task.request, identity)
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
