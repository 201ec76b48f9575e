"""Restore: a unit of photos in, restored pictures and their committed outcomes out.

Faces and their draws run through the cascade in batches across photos. The noise of a draw is keyed by the
content of its photo and its number alone. Where a network sees a batch at once every batch has the same size,
the last one filled up: kernels round differently at another size (measured: one level in 1 of 70,000 values),
and not with other batch mates. So neither order nor mates nor a retry change a byte. A face that fails in one
of its draws is recorded as failed; nothing is written in its place.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.images import ImageRefused, Pixels, decode, encode_png, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.stages import Mode
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.outcomes import UNREADABLE, Outcome, commit_unit
from pipelines.restoration.provenance import Provenance, sign_png
from pipelines.restoration.samples import other_outputs, pixel_std, std_heatmap
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_MIN_INPUT_PX = 8


class RestoredImage(Protocol):
    """What a cascade returns; `tem` is the final picture, b 3 hq hq in [-1, 1]."""

    @property
    def tem(self) -> 'Float[Tensor, "b 3 hq hq"]':
        """The last stage's output."""
        ...


class Restorer(Protocol):
    """A loaded cascade, as `diffbfr.cascade.Cascade` is one."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the number of faces in a batch changes no bit of any of them."""
        ...

    def restore(
        self, x_0: 'Float[Tensor, "b 3 lq lq"]', noise_keys: Sequence[str], mode: Mode
    ) -> RestoredImage:
        """Restore a batch of faces in [-1, 1], one noise key a face."""
        ...


class RestorationModel(Protocol):
    """A cascade pinned by its digest; picklable, and loaded where the work runs."""

    @property
    def digest(self) -> str:
        """Digest of the cascade."""
        ...

    @property
    def lq_px(self) -> int:
        """Side of what goes in."""
        ...

    @property
    def hq_px(self) -> int:
        """Side of what comes out."""
        ...

    def load(self) -> Restorer:
        """Load the cascade on this machine."""
        ...


@dataclass(frozen=True)
class Work:
    """One photo and where its restoration goes, relative to the output folder."""

    ref: PhotoRef
    output: str


@dataclass(frozen=True)
class RestoreTask:
    """A unit of photos with different content."""

    index: int
    source: PhotoSource
    works: tuple[Work, ...]
    output_uri: str
    mode: Mode
    seed: int
    batch_faces: int
    samples: int = 1


@dataclass(frozen=True)
class Copy:
    """One photo whose bytes another input has too, and what became of that one."""

    work: Work
    original: LedgerRow


@dataclass(frozen=True)
class CopyTask:
    """A unit of duplicates."""

    index: int
    copies: tuple[Copy, ...]
    output_uri: str


@dataclass(frozen=True)
class BatchReport:
    """What became of a unit's photos, in its order; committed."""

    outcomes: tuple[Outcome, ...]


class RestoreWorker:
    """Holds a loaded cascade and restores unit after unit with it."""

    def __init__(self, model: RestorationModel) -> None:
        self._model = model
        self._cascade = model.load()

    def __call__(self, task: RestoreTask) -> BatchReport:
        """Restore a unit, write its pictures, then its record."""
        opened = [_open_face(task.source, work, self._model.lq_px) for work in task.works]
        faces = [face for face in opened if isinstance(face, _Face)]
        started = time.perf_counter()
        wanted = [(face, draw) for face in faces for draw in range(task.samples)]
        batches = [
            wanted[start : start + task.batch_faces] for start in range(0, len(wanted), task.batch_faces)
        ]
        results = [result for batch in batches for result in self._restore(batch, task)]
        share_s = (time.perf_counter() - started) / max(1, len(faces))
        finished = {
            face.work.ref.name: self._write(
                task,
                replace(face, seconds=face.seconds + share_s),
                results[i * task.samples : (i + 1) * task.samples],
            )
            for i, face in enumerate(faces)
        }
        outcomes = tuple(finished[face.work.ref.name] if isinstance(face, _Face) else face for face in opened)
        commit_unit(task.output_uri, outcomes)
        return BatchReport(outcomes)

    def _restore(self, wanted: Sequence[tuple["_Face", int]], task: RestoreTask) -> list["Pixels | _Failure"]:
        """Restore a batch, filled up to its full size where that matters; if it fails each draw is tried
        alone, so that a bad one does.
        """
        missing = 0 if self._cascade.is_batch_invariant else task.batch_faces - len(wanted)
        full = [*wanted, *[wanted[-1]] * missing]
        try:
            keys = [noise_key(face.sha256, draw=draw, seed=task.seed) for face, draw in full]
            restored = self._cascade.restore(to_tensor([face.pixels for face, _ in full]), keys, task.mode)
            return list(to_pixels(restored.tem[: len(wanted)]))
        except UsageError:
            raise
        except (
            RuntimeError,
            DiffBFRError,
        ) as error:  # RuntimeError: what torch raises, out of memory included
            if len(wanted) == 1:
                return [_Failure("restore_error", one_line(error))]
        return [result for one in wanted for result in self._restore([one], task)]

    def _write(self, task: RestoreTask, face: "_Face", draws: Sequence["Pixels | _Failure"]) -> Outcome:
        """Write a face's pictures; a failed draw fails the face."""
        failure = next((draw for draw in draws if isinstance(draw, _Failure)), None)
        if failure is not None:
            return _without_output(face.row("failed", failure.reason, failure.message), face.work.ref)
        started = time.perf_counter()
        made_by = Provenance(self._model.digest, face.sha256, task.mode, task.seed)
        pictures = [draw for draw in draws if not isinstance(draw, _Failure)]
        spread = pixel_std(pictures) if task.samples > 1 else None
        if spread is not None:
            pictures.append(std_heatmap(spread))
        pngs = [sign_png(encode_png(picture), made_by, face.icc) for picture in pictures]
        outputs = (face.work.output, *other_outputs(face.work.output, task.samples))
        for output, png in zip(outputs, pngs, strict=True):
            storage.write_atomic(storage.join(task.output_uri, output), png)
        row = replace(
            face.row("restored", "", ""),
            num_faces=1,
            output=face.work.output,
            output_sha256=hashlib.sha256(pngs[0]).hexdigest(),
            model_digest=self._model.digest,
            seconds=face.seconds + time.perf_counter() - started,
            samples=task.samples,
            spread=0.0 if spread is None else float(spread.mean()),
        )
        others = tuple((output, len(png)) for output, png in zip(outputs[1:], pngs[1:], strict=True))
        return Outcome(row, face.work.ref.fingerprint, len(pngs[0]), others)


def copy_duplicates(task: CopyTask) -> BatchReport:
    """Give each duplicate its own file with the original's picture, or the original's refusal; then write
    the unit's record.
    """
    outcomes = tuple(_copy(copy, task.output_uri) for copy in task.copies)
    commit_unit(task.output_uri, outcomes)
    return BatchReport(outcomes)


@dataclass(frozen=True, eq=False)
class _Face:
    """An aligned face ready for the cascade: lq px square, and what is known about its photo."""

    work: Work
    num_bytes: int
    sha256: str
    width: int
    height: int
    pixels: Pixels
    icc: bytes | None
    seconds: float

    def row(self, status: Literal["restored", "failed"], reason: str, message: str) -> LedgerRow:
        """Begin the photo's row."""
        return replace(
            _row(self.work.ref, status, reason, message),
            num_bytes=self.num_bytes,
            sha256=self.sha256,
            width=self.width,
            height=self.height,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class _Failure:
    reason: str
    message: str


def _open_face(source: PhotoSource, work: Work, lq_px: int) -> _Face | Outcome:
    """Read and decode an aligned face crop, or say why it is refused."""
    started = time.perf_counter()
    try:
        data = source.read(work.ref)
    except PhotoUnreadableError as error:
        return _without_output(_row(work.ref, "quarantined", UNREADABLE, one_line(error)), work.ref)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data, min_px=_MIN_INPUT_PX)
        small = lq_to_model(decoded.pixels, lq_px)
    except ImageRefused as error:
        row = replace(
            _row(work.ref, "quarantined", error.reason_code, one_line(error)),
            num_bytes=len(data),
            sha256=sha256,
        )
        return _without_output(replace(row, seconds=time.perf_counter() - started), work.ref)
    height, width = decoded.pixels.shape[:2]
    return _Face(work, len(data), sha256, width, height, small, decoded.icc, time.perf_counter() - started)


def _copy(copy: Copy, output_uri: str) -> Outcome:
    original, ref = copy.original, copy.work.ref
    if original.status != "restored":
        return _without_output(replace(original, name=ref.name, duplicate_of=original.name, seconds=0.0), ref)
    started = time.perf_counter()
    png = storage.read_bytes(storage.join(output_uri, original.output))
    if hashlib.sha256(png).hexdigest() != original.output_sha256:
        raise DiffBFRError(
            f"{original.output} changed after it was restored; expected the bytes of its record; remove it "
            "and run again"
        )
    storage.write_atomic(storage.join(output_uri, copy.work.output), png)
    others = []
    for theirs, ours in zip(
        *(other_outputs(output, original.samples) for output in (original.output, copy.work.output)),
        strict=True,
    ):
        picture = storage.read_bytes(storage.join(output_uri, theirs))
        storage.write_atomic(storage.join(output_uri, ours), picture)
        others.append((ours, len(picture)))
    row = replace(
        original,
        name=ref.name,
        status="duplicate",
        duplicate_of=original.name,
        output=copy.work.output,
        seconds=time.perf_counter() - started,
    )
    return Outcome(row, ref.fingerprint, len(png), tuple(others))


def _without_output(row: LedgerRow, ref: PhotoRef) -> Outcome:
    return Outcome(row, ref.fingerprint, 0)


def _row(
    ref: PhotoRef, status: Literal["restored", "quarantined", "failed"], reason: str, message: str
) -> LedgerRow:
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
