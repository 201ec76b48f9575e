"""A photo on its way through a restoration: what is to be done, what was read, and what is to be written."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from diffbfr.errors import one_line
from diffbfr.images import ImageRefused
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.face_queue import FaceDraw
from pipelines.restoration.face_rows import FaceRow
from pipelines.restoration.identity import IdentityCheck
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.request import RestoreRequest
from pipelines.sources import PhotoRef
from pipelines.sources.skipping import MESSAGES


@dataclass(frozen=True)
class WorkItem:
    """One photo and the output file of its restoration, relative to the output folder."""

    ref: PhotoRef
    output: str


@dataclass(frozen=True, eq=False)
class ReadFile:
    """The bytes of a photo's file, their sha256, and the seconds that reading and decoding them took."""

    item: WorkItem
    data: bytes
    sha256: str
    seconds: float

    def row(
        self, status: Literal["restored", "no_face", "failed"], reason: str = "", message: str = ""
    ) -> LedgerRow:
        """The ledger row of the photo; the fields of its size and its output are left empty."""
        row = empty_row(self.item.ref, status, reason, message)
        return replace(row, num_bytes=len(self.data), sha256=self.sha256, seconds=self.seconds)


@dataclass(frozen=True, eq=False)
class Finished:
    """What is to be written of a photo: its files by name, the first its output, and its rows."""

    row: LedgerRow
    files: Mapping[str, bytes] = field(default_factory=dict)
    faces: tuple[FaceRow, ...] = ()


class OpenPhoto(Protocol):
    """A photo that was read; its faces wait for the cascade or have passed it."""

    @property
    def file(self) -> ReadFile:
        """The file."""
        ...

    @property
    def draws(self) -> Sequence[FaceDraw]:
        """Every restoration of every face to be restored."""
        ...

    def finish(self, request: RestoreRequest, identity: IdentityCheck | None) -> Finished:
        """Compose and encode the outputs, once every draw has its result."""
        ...


def is_restored(photo: OpenPhoto) -> bool:
    """Whether every face of a photo has passed the cascade."""
    return all(draw.is_done for draw in photo.draws)


def finish_photo(
    photo: OpenPhoto, request: RestoreRequest, identity: IdentityCheck | None = None
) -> Finished:
    """Compose and encode a photo; one that its format cannot hold is `failed`, without a file."""
    try:
        return photo.finish(request, identity)
    except ImageRefused as error:
        return Finished(photo.file.row("failed", str(error.reason_code), one_line(error)))


def sha256_of(data: bytes) -> str:
    """The identity of a file: the sha256 of its bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def empty_row(
    ref: PhotoRef,
    status: Literal["restored", "no_face", "quarantined", "failed", "skipped"],
    reason: str,
    message: str,
) -> LedgerRow:
    """A ledger row without what is known of the content and the output."""
    return LedgerRow(
        name=ref.name,
        status=status,
        reason=reason,
        message=message,
        num_bytes=ref.bytes,
        sha256="",
        width=0,
        height=0,
        num_faces=0,
        duplicate_of="",
        output="",
        output_sha256="",
        model_digest="",
        seconds=0.0,
    )


def skipped_row(ref: PhotoRef) -> LedgerRow:
    """The ledger row of an input that is no photo by its name; it is not read."""
    return empty_row(ref, "skipped", ref.skipped, MESSAGES[ref.skipped])


def without_output(row: LedgerRow, ref: PhotoRef) -> Outcome:
    """The outcome of a photo for which no file was written."""
    return Outcome(row, ref.fingerprint, 0)
