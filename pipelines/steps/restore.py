"""Restore: a unit of photos in, restored images and their committed outcomes out.

Faces and their samples run through the cascade in batches that mix photos. The noise of a sample is keyed by
the content of its photo and the number of the sample alone. A network that sees a batch at once always gets
batches of the same size, the last one padded: kernels round differently at another size (measured: one level
in 1 of 70,000 values), but not with other images in the batch. So neither the order of the photos, nor their
batch, nor a retry changes a byte. A face whose restoration fails for one sample is recorded as failed, and no
file is written for it.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal, Protocol

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.images import ImageRefused, Pixels, decode, lq_to_model, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.stages import Mode
from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.access import file_mode
from pipelines.restoration.outcomes import UNREADABLE, Outcome, OutputFile, commit_unit
from pipelines.restoration.provenance import Provenance, encode_signed_png
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.samples import other_outputs, pixel_std, std_heatmap
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from diffbfr.cascade import Restoration

_MIN_INPUT_PX = 8


class LoadedModel(Protocol):
    """What a worker needs of a loaded cascade (`diffbfr.cascade.Cascade`)."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the number of faces in a batch changes no bit of any of them."""
        ...

    def restore(
        self, x_0: 'Float[Tensor, "b 3 lq lq"]', noise_keys: Sequence[str], mode: Mode
    ) -> "Restoration":
        """Restore a batch of faces in [-1, 1] with one noise key a face; the result's `tem` is b 3 hq hq."""
        ...


class RestorationModel(Protocol):
    """A cascade identified by its digest; it is picklable, and each worker loads it."""

    @property
    def digest(self) -> str:
        """Digest of the cascade's files."""
        ...

    @property
    def lq_px(self) -> int:
        """Side of the input in pixels."""
        ...

    @property
    def hq_px(self) -> int:
        """Side of the output in pixels."""
        ...

    def load(self) -> LoadedModel:
        """Load the cascade on this machine."""
        ...


@dataclass(frozen=True)
class WorkItem:
    """One photo and the output file of its restoration, relative to the output folder."""

    ref: PhotoRef
    output: str


@dataclass(frozen=True)
class RestoreTask:
    """A unit of photos with different content."""

    index: int
    source: PhotoSource
    items: tuple[WorkItem, ...]
    output_uri: str
    mode: Mode
    seed: int
    batch_faces: int
    samples: int = 1
    request: RestoreRequest | None = None


@dataclass(frozen=True)
class Copy:
    """One photo that has the same bytes as another input, and the ledger row of that input."""

    item: WorkItem
    original: LedgerRow


@dataclass(frozen=True)
class CopyTask:
    """A unit of duplicates."""

    index: int
    copies: tuple[Copy, ...]
    output_uri: str
    request: RestoreRequest | None = None


@dataclass(frozen=True)
class BatchReport:
    """The committed outcomes of a unit's photos, in its order."""

    outcomes: tuple[Outcome, ...]


class RestoreWorker:
    """Holds a loaded cascade and restores unit after unit with it."""

    def __init__(self, model: RestorationModel) -> None:
        self._model = model
        self._cascade = model.load()

    def __call__(self, task: RestoreTask) -> BatchReport:
        """Restore a unit: write its images, then its record."""
        opened = [_open_face(task.source, item, self._model.lq_px) for item in task.items]
        faces = [face for face in opened if isinstance(face, _Face)]
        started = time.perf_counter()
        results = self._restore_all(faces, task)
        # networks see batches that mix photos, so each face is charged an equal part of their time
        seconds_per_face = (time.perf_counter() - started) / max(1, len(faces))
        finished: dict[str, Outcome] = {}
        for i, face in enumerate(faces):
            samples = results[i * task.samples : (i + 1) * task.samples]
            timed = replace(face, seconds=face.seconds + seconds_per_face)
            finished[face.item.ref.name] = self._write(task, timed, samples)
        outcomes = tuple(finished[face.item.ref.name] if isinstance(face, _Face) else face for face in opened)
        commit_unit(task.output_uri, outcomes, task.request)
        return BatchReport(outcomes)

    def _restore_all(self, faces: Sequence["_Face"], task: RestoreTask) -> list["Pixels | _Failure"]:
        """All samples of all faces, batch by batch: the samples of the first face, of the second, ..."""
        wanted = list(product(faces, range(task.samples)))
        results: list[Pixels | _Failure] = []
        for start in range(0, len(wanted), task.batch_faces):
            results += self._restore(wanted[start : start + task.batch_faces], task)
        return results

    def _restore(self, wanted: Sequence[tuple["_Face", int]], task: RestoreTask) -> list["Pixels | _Failure"]:
        """Restore a batch, padded to its full size unless the model is batch-invariant.

        If the batch fails, each of its samples is restored alone, so that only the bad ones fail.
        """
        missing = 0 if self._cascade.is_batch_invariant else task.batch_faces - len(wanted)
        full = [*wanted, *[wanted[-1]] * missing]
        try:
            keys = [noise_key(face.sha256, draw=number, seed=task.seed) for face, number in full]
            restored = self._cascade.restore(to_tensor([face.pixels for face, _ in full]), keys, task.mode)
            return list(to_pixels(restored.tem[: len(wanted)]))
        except UsageError:
            raise
        except (RuntimeError, DiffBFRError) as error:  # torch raises RuntimeError, also if out of memory
            if len(wanted) == 1:
                return [_Failure("restore_error", one_line(error))]
        results: list[Pixels | _Failure] = []
        for one in wanted:
            results += self._restore([one], task)
        return results

    def _write(self, task: RestoreTask, face: "_Face", samples: Sequence["Pixels | _Failure"]) -> Outcome:
        """Write the images of a face; one failed sample fails the face."""
        failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
        if failure is not None:
            return _without_output(face.row("failed", failure.reason, failure.message), face.item.ref)
        started = time.perf_counter()
        made_by = Provenance(self._model.digest, face.sha256, task.mode, task.seed)
        images = [sample for sample in samples if not isinstance(sample, _Failure)]
        spread = pixel_std(images) if task.samples > 1 else None
        if spread is not None:
            images.append(std_heatmap(spread))
        pngs = [encode_signed_png(image, made_by, face.icc) for image in images]
        outputs = (face.item.output, *other_outputs(face.item.output, task.samples))
        mode = file_mode(task.source.uri, face.item.ref.uri)
        for output, png in zip(outputs, pngs, strict=True):
            place = storage.join(task.output_uri, output)
            storage.write_atomic(place, png, within=task.output_uri, mode=mode)
        row = replace(
            face.row("restored", "", ""),
            num_faces=1,
            output=face.item.output,
            output_sha256=hashlib.sha256(pngs[0]).hexdigest(),
            model_digest=self._model.digest,
            seconds=face.seconds + time.perf_counter() - started,
            samples=task.samples,
            spread=0.0 if spread is None else float(spread.mean()),
        )
        others = tuple(
            OutputFile(output, len(png), hashlib.sha256(png).hexdigest())
            for output, png in zip(outputs[1:], pngs[1:], strict=True)
        )
        return Outcome(row, face.item.ref.fingerprint, len(pngs[0]), others)


def copy_duplicates(task: CopyTask) -> BatchReport:
    """Copy the original's images, or its refusal, to each duplicate; then write the unit's record."""
    source_uri = task.request.input if task.request is not None else ""
    outcomes = tuple(_copy(copy, task.output_uri, source_uri) for copy in task.copies)
    commit_unit(task.output_uri, outcomes, task.request)
    return BatchReport(outcomes)


@dataclass(frozen=True, eq=False)
class _Face:
    """An aligned face as the cascade takes it, uint8 lq lq 3, and the facts about its photo."""

    item: WorkItem
    num_bytes: int
    sha256: str
    width: int
    height: int
    pixels: Pixels
    icc: bytes | None
    seconds: float

    def row(self, status: Literal["restored", "failed"], reason: str, message: str) -> LedgerRow:
        """The ledger row of the photo; the fields of an output are left empty."""
        return replace(
            _row(self.item.ref, status, reason, message),
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


def _open_face(source: PhotoSource, item: WorkItem, lq_px: int) -> _Face | Outcome:
    """Read and decode an aligned face crop; the outcome instead if it is refused."""
    started = time.perf_counter()
    try:
        data = source.read(item.ref)
    except PhotoUnreadableError as error:
        return _without_output(_row(item.ref, "quarantined", UNREADABLE, one_line(error)), item.ref)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode(data, min_px=_MIN_INPUT_PX)
        small = lq_to_model(decoded.pixels, lq_px)
    except ImageRefused as error:
        row = replace(
            _row(item.ref, "quarantined", error.reason_code, one_line(error)),
            num_bytes=len(data),
            sha256=sha256,
        )
        return _without_output(replace(row, seconds=time.perf_counter() - started), item.ref)
    height, width = decoded.pixels.shape[:2]
    return _Face(item, len(data), sha256, width, height, small, decoded.icc, time.perf_counter() - started)


def _copy(copy: Copy, output_uri: str, source_uri: str) -> Outcome:
    original, ref = copy.original, copy.item.ref
    if original.status != "restored":
        return _without_output(replace(original, name=ref.name, duplicate_of=original.name, seconds=0.0), ref)
    started = time.perf_counter()
    # the file is read again: it may have been changed since an earlier run restored it
    png = storage.read_bytes(storage.join(output_uri, original.output))
    if hashlib.sha256(png).hexdigest() != original.output_sha256:
        failed = replace(
            _row(ref, "failed", "original_changed", f"{original.output} changed after it was restored"),
            sha256=original.sha256,
            duplicate_of=original.name,
        )
        return _without_output(failed, ref)  # the next run restores both
    mode = file_mode(source_uri, ref.uri)
    storage.write_atomic(storage.join(output_uri, copy.item.output), png, within=output_uri, mode=mode)
    others = []
    originals = other_outputs(original.output, original.samples)
    for theirs, ours in zip(originals, other_outputs(copy.item.output, original.samples), strict=True):
        image = storage.read_bytes(storage.join(output_uri, theirs))
        storage.write_atomic(storage.join(output_uri, ours), image, within=output_uri, mode=mode)
        others.append(OutputFile(ours, len(image), hashlib.sha256(image).hexdigest()))
    row = replace(
        original,
        name=ref.name,
        status="duplicate",
        duplicate_of=original.name,
        output=copy.item.output,
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
