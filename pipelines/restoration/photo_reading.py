"""A photo file becomes an open photo: decoded in a child process, its faces ready for the queue."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffbfr.errors import UsageError, one_line
from diffbfr.images import ImageRefused
from pipelines.restoration.aligned_photo import open_aligned
from pipelines.restoration.face_input import read_face_sandboxed, start_reader
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.whole_input import read_whole_sandboxed, start_whole_reader
from pipelines.restoration.whole_photo import open_whole
from pipelines.restoration.work import (
    OpenPhoto,
    ReadFile,
    WorkItem,
    empty_row,
    sha256_of,
    without_output,
)
from pipelines.sources.sandbox import WorkerFailure


class PhotoReader:
    """Decodes photos for one request, as aligned crops or whole with the detector of `weights`.

    The child process belongs to the thread that calls.
    """

    def __init__(self, request: RestoreRequest, lq_px: int, hq_px: int, weights: Path | None) -> None:
        if request.photos is not None and weights is None:
            raise UsageError("the task has no face detector; expected one for whole photos")
        self._request = request
        self._lq_px = lq_px
        self._hq_px = hq_px
        self._weights = weights

    def warm_up(self) -> None:
        """Start the child process of this thread."""
        if self._request.photos is None:
            start_reader()
        else:
            start_whole_reader()

    def open(self, item: WorkItem, data: bytes, seconds: float = 0.0) -> OpenPhoto | Outcome:
        """Decode a file, which took `seconds` to read; its outcome instead if it is refused."""
        started = time.perf_counter() - seconds
        sha256 = sha256_of(data)
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
        if request.photos is None:
            read = read_face_sandboxed(data, self._lq_px, self._hq_px)
            return read if isinstance(read, WorkerFailure) else open_aligned(file(), read, request)
        assert self._weights is not None
        whole = read_whole_sandboxed(data, self._weights, request.photos, self._lq_px, self._hq_px)
        return whole if isinstance(whole, WorkerFailure) else open_whole(file(), whole, request)
