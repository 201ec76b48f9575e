"""A photo that was handed in: how far it is, and what became of it."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.output_names import Naming, output_names
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.samples import first_prefix
from pipelines.restoration.work import Finished, OpenPhoto, WorkItem
from pipelines.sources import PhotoRef

State: TypeAlias = Literal["waiting", "reading", "restoring", "writing", "done", "refused", "failed"]
"""`done` has files; `refused` is a photo that cannot be read, `failed` an error while it was restored."""

ENDED: Final = ("done", "refused", "failed")
UNNAMED: Final = "photo"
_ID_BYTES: Final = 24


@dataclass(frozen=True)
class FileView:
    """A file to download."""

    number: int
    name: str
    num_bytes: int


@dataclass(frozen=True)
class JobView:
    """A job as the page sees it; `version` grows with every change.

    `num_draws` counts every restoration of every face, `num_done` those that passed the cascade. `status`,
    `reason` and `message` are those of the ledger, `faces` the rows of `faces.parquet`.
    """

    id: str
    version: int
    name: str
    state: State
    num_draws: int = 0
    num_done: int = 0
    seconds: float = 0.0
    status: str = ""
    reason: str = ""
    message: str = ""
    width: int = 0
    height: int = 0
    samples: int = 1
    spread: float = 0.0
    faces: tuple[FaceRow, ...] = ()
    files: tuple[FileView, ...] = ()


class Job:
    """One photo with its request; its methods may be called from any thread."""

    def __init__(self, name: str, data: bytes, request: RestoreRequest) -> None:
        self.id = secrets.token_urlsafe(_ID_BYTES)
        self.name = name or UNNAMED
        self.data = data
        self.request = request
        self.item = work_item(self.name, len(data), request)
        self.number = 0
        self.photo: OpenPhoto | None = None
        self.ended_at: float | None = None
        self._created = time.monotonic()
        self._lock = threading.Lock()
        self._state: State = "waiting"
        self._version = 0
        self._is_removed = False
        self._finished: Finished | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_removed(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_removed

    @property
    def files(self) -> Sequence[tuple[str, bytes]]:
        """Names and contents of the outputs; none until it is done."""
        finished = self._finished
        return () if finished is None else list(finished.files.items())

    @property
    def num_bytes(self) -> int:
        """What it holds in memory, without decoded pixels."""
        return len(self.data) + sum(len(content) for _, content in self.files)

    def move(self, state: State, photo: OpenPhoto | None = None) -> None:
        """Begin the next stage."""
        if photo is not None:
            self.photo = photo
        self._change(lambda: self._set(state, None))

    def progress(self) -> None:
        """Some of its faces have passed the cascade."""
        self._change(lambda: None)

    def end(self, finished: Finished) -> None:
        """Take the result; the decoded photo is let go."""
        row = finished.row
        state: State = "done" if finished.files else "refused" if row.status == "quarantined" else "failed"
        self.ended_at = time.monotonic()
        self.photo = None
        self._change(lambda: self._set(state, finished))

    def remove(self) -> None:
        """Nobody waits for it any more: stages that are still to come are left out."""
        self._is_removed = True
        self._change(lambda: None)

    def when_changed(self, version: int, call: Callable[[], None]) -> bool:
        """Have a function called once at the next change; False if there was one since `version`."""
        with self._lock:
            if self._version != version or self._state in ENDED or self._is_removed:
                return False
            self._listeners.append(call)
            return True

    def view(self) -> JobView:
        """Its present state."""
        with self._lock:
            version, state, finished, photo = self._version, self._state, self._finished, self.photo
        draws = [] if photo is None else photo.draws
        view = JobView(
            id=self.id,
            version=version,
            name=self.name,
            state=state,
            num_draws=len(draws),
            num_done=sum(draw.is_done for draw in draws),
            seconds=(self.ended_at or time.monotonic()) - self._created,
            samples=self.request.samples,
        )
        return view if finished is None else _with_result(view, finished)

    def _set(self, state: State, finished: Finished | None) -> None:
        self._state, self._finished = state, finished

    def _change(self, change: Callable[[], None]) -> None:
        with self._lock:
            change()
            self._version += 1
            listeners, self._listeners = self._listeners, []
        for call in listeners:
            call()


def work_item(name: str, num_bytes: int, request: RestoreRequest) -> WorkItem:
    """The work of one photo; the names of its outputs are those of `diffbfr restore`, without folders."""
    assert request.photos is not None
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2] or UNNAMED
    naming = Naming(request.photos.file_format or None)
    output = output_names([base], {}, naming)[base]
    ref = PhotoRef(uri="", name=base, bytes=num_bytes, fingerprint="")
    return WorkItem(ref, first_prefix(request.samples) + output)


def _with_result(view: JobView, finished: Finished) -> JobView:
    row = finished.row
    files = tuple(
        FileView(number, _download_name(name), len(content))
        for number, (name, content) in enumerate(finished.files.items())
    )
    return replace(
        view,
        status=row.status,
        reason=row.reason,
        message=row.message,
        width=row.width,
        height=row.height,
        spread=row.spread,
        faces=finished.faces,
        files=files,
    )


def _download_name(output: str) -> str:
    """`sample-1/trip.jpg` becomes `sample-1-trip.jpg`."""
    return output.replace("/", "-")
