"""Restore: a unit of photos in, restored images and their committed outcomes out.

Faces and their samples run through the cascade in batches that mix photos. The noise of a sample is keyed by
the content of its photo and the number of the sample alone. A network that sees a batch at once always gets
batches of the same size, the last one padded: kernels round differently at another size (measured: one level
in 1 of 70,000 values), but not with other images in the batch. So neither the order of the photos, nor their
batch, nor a retry changes a byte. A face whose restoration fails for one sample is recorded as failed, and no
file is written for it.

Photos are decoded in a child process (`pipelines.restoration.face_input`), by a thread that runs ahead while
the network computes. A photo that kills its decoder, never ends or exhausts the memory has a row with that
reason, and the others of its unit are restored as if it were not there.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from diffbfr.errors import DiffBFRError, UsageError, one_line
from diffbfr.images import ImageRefused, Pixels, to_pixels, to_tensor
from diffbfr.keys import noise_key
from diffbfr.stages import Mode
from pipelines import storage
from pipelines.cluster.protocol import ReportCounts
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.access import file_mode
from pipelines.restoration.face_input import FaceInput, read_face_sandboxed, start_reader
from pipelines.restoration.outcomes import UNREADABLE, Outcome, OutputFile, commit_unit
from pipelines.restoration.provenance import Provenance, encode_signed_png
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.samples import other_outputs, pixel_std, std_heatmap
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError
from pipelines.sources.sandbox import WorkerFailure
from pipelines.sources.skipping import MESSAGES

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from diffbfr.cascade import Restoration


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
        self._reader.submit(start_reader)
        self._cascade = model.load()

    def __call__(self, task: RestoreTask) -> BatchReport:
        """Restore a unit: write its images, then its record."""
        opened: list[_Face | Outcome] = []
        waiting: list[tuple[_Face, int]] = []
        results: list[Pixels | _Failure] = []
        seconds = 0.0
        for photo in self._read_ahead(task):
            opened.append(photo)
            if isinstance(photo, _Face):
                waiting += [(photo, number) for number in range(task.samples)]
            is_last = len(opened) == len(task.items)
            while len(waiting) >= task.batch_faces or (is_last and waiting):
                started = time.perf_counter()
                results += self._restore(waiting[: task.batch_faces], task)
                del waiting[: task.batch_faces]
                seconds += time.perf_counter() - started
        faces = [photo for photo in opened if isinstance(photo, _Face)]
        finished: dict[str, Outcome] = {}
        for i, face in enumerate(faces):
            samples = results[i * task.samples : (i + 1) * task.samples]
            # networks see batches that mix photos, so each face is charged an equal part of their time
            timed = replace(face, seconds=face.seconds + seconds / len(faces))
            finished[face.item.ref.name] = self._write(task, timed, samples)
        outcomes = tuple(
            finished[photo.item.ref.name] if isinstance(photo, _Face) else photo for photo in opened
        )
        _commit(task, outcomes)
        return BatchReport(outcomes)

    def _read_ahead(self, task: RestoreTask) -> Iterator["_Face | Outcome"]:
        """The unit's photos in their order, read and decoded ahead of their use."""
        pending = [
            self._reader.submit(_open_face, task.source, item, self._model.lq_px, self._model.hq_px)
            for item in task.items
        ]
        try:
            for photo in pending:
                yield photo.result()
        finally:
            for photo in pending:
                photo.cancel()

    def _restore(self, wanted: Sequence[tuple["_Face", int]], task: RestoreTask) -> list["Pixels | _Failure"]:
        """Restore a batch, padded to its full size unless the model is batch-invariant.

        If the batch fails, each of its samples is restored alone, so that only the bad ones fail.
        """
        missing = 0 if self._cascade.is_batch_invariant else task.batch_faces - len(wanted)
        full = [*wanted, *[wanted[-1]] * missing]
        try:
            keys = [noise_key(face.sha256, draw=number, seed=task.seed) for face, number in full]
            restored = self._cascade.restore(
                to_tensor([face.read.pixels for face, _ in full]), keys, task.mode
            )
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
        kept = face.read.kept
        pngs = [
            encode_signed_png(image, made_by, kept.icc, exif=kept.exif, dpi=kept.dpi, alpha=kept.alpha)
            for image in images
        ]
        if spread is not None:
            pngs.append(encode_signed_png(std_heatmap(spread), made_by, kept.icc))
        outputs = (face.item.output, *other_outputs(face.item.output, task.samples))
        mode = file_mode(task.source.uri, face.item.ref.uri)
        refusal = _write_outputs(task.output_uri, dict(zip(outputs, pngs, strict=True)), mode)
        if refusal is not None:
            return _without_output(face.row("failed", refusal.reason, refusal.message), face.item.ref)
        row = replace(
            face.row("restored", "", "; ".join(face.read.notes)),
            num_faces=1,
            output=face.item.output,
            output_sha256=hashlib.sha256(pngs[0]).hexdigest(),
            model_digest=self._model.digest,
            seconds=face.seconds + time.perf_counter() - started,
            samples=task.samples,
            spread=0.0 if spread is None else float(spread.mean()),
        )
        others = tuple(_file(output, png) for output, png in zip(outputs[1:], pngs[1:], strict=True))
        return Outcome(row, face.item.ref.fingerprint, len(pngs[0]), others)


def skipped_outcome(ref: PhotoRef) -> Outcome:
    """Return the outcome of an input that is no photo by its name; it is not read."""
    return _without_output(_row(ref, "skipped", ref.skipped, MESSAGES[ref.skipped]), ref)


def _write_outputs(output_uri: str, contents: Mapping[str, bytes], mode: int) -> "_Failure | None":
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
            return _Failure(
                "output_refused",
                f"{output} cannot be written ({error.strerror}); expected a name that the file system of the "
                "output takes; rename the input, or name an output elsewhere",
            )
    return None


def copy_duplicates(task: CopyTask) -> BatchReport:
    """Copy the original's images, or its refusal, to each duplicate; then write the unit's record."""
    source_uri = task.request.input if task.request is not None else ""
    outcomes = tuple(_copy(copy, task.output_uri, source_uri) for copy in task.copies)
    _commit(task, outcomes)
    return BatchReport(outcomes)


@dataclass(frozen=True, eq=False)
class _Face:
    """A photo that was decoded, and the facts about its file."""

    item: WorkItem
    num_bytes: int
    sha256: str
    read: FaceInput
    seconds: float

    def row(self, status: Literal["restored", "failed"], reason: str, message: str) -> LedgerRow:
        """The ledger row of the photo; the fields of an output are left empty."""
        return replace(
            _row(self.item.ref, status, reason, message),
            num_bytes=self.num_bytes,
            sha256=self.sha256,
            width=self.read.width,
            height=self.read.height,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class _Failure:
    reason: str
    message: str


def _open_face(source: PhotoSource, item: WorkItem, lq_px: int, hq_px: int) -> _Face | Outcome:
    """Read and decode an aligned face crop; the outcome instead if it is refused."""
    started = time.perf_counter()
    try:
        data = source.read(item.ref)
    except PhotoUnreadableError as error:
        return _without_output(_row(item.ref, "quarantined", UNREADABLE, one_line(error)), item.ref)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        read = read_face_sandboxed(data, lq_px, hq_px)
    except ImageRefused as error:
        reason: str = error.reason_code
        message = one_line(error)
    else:
        seconds = time.perf_counter() - started
        if not isinstance(read, WorkerFailure):
            return _Face(item, len(data), sha256, read, seconds)
        reason, message = read.reason, f"decoding it failed: {read.message}"
    row = replace(_row(item.ref, "quarantined", reason, message), num_bytes=len(data), sha256=sha256)
    return _without_output(replace(row, seconds=time.perf_counter() - started), item.ref)


def _copy(copy: Copy, output_uri: str, source_uri: str) -> Outcome:
    original, ref = copy.original, copy.item.ref
    if original.status != "restored":
        return _without_output(replace(original, name=ref.name, duplicate_of=original.name, seconds=0.0), ref)
    started = time.perf_counter()
    # the file is read again: it may have been changed since an earlier run restored it
    try:
        png = storage.read_bytes(storage.join(output_uri, original.output))
        digest = hashlib.sha256(png).hexdigest()
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise storage.place_error(output_uri, error, "read") from error
        digest = ""
    if digest != original.output_sha256:
        failed = replace(
            _row(ref, "failed", "original_changed", f"{original.output} changed after it was restored"),
            sha256=original.sha256,
            duplicate_of=original.name,
        )
        return _without_output(failed, ref)  # the next run restores both
    contents = {copy.item.output: png}
    originals = other_outputs(original.output, original.samples)
    for theirs, ours in zip(originals, other_outputs(copy.item.output, original.samples), strict=True):
        contents[ours] = storage.read_bytes(storage.join(output_uri, theirs))
    refusal = _write_outputs(output_uri, contents, file_mode(source_uri, ref.uri))
    row = replace(original, name=ref.name, duplicate_of=original.name, seconds=time.perf_counter() - started)
    if refusal is not None:
        emptied = replace(row, output="", output_sha256="", model_digest="", num_faces=0)
        failed = replace(emptied, status="failed", reason=refusal.reason, message=refusal.message)
        return _without_output(failed, ref)
    done = replace(row, status="duplicate", output=copy.item.output)
    others = tuple(_file(name, image) for name, image in contents.items() if name != copy.item.output)
    return Outcome(done, ref.fingerprint, len(png), others)


def _file(name: str, content: bytes) -> OutputFile:
    return OutputFile(name, len(content), hashlib.sha256(content).hexdigest())


def _commit(task: RestoreTask | CopyTask, outcomes: Sequence[Outcome]) -> None:
    try:
        commit_unit(task.output_uri, outcomes, task.request)
    except OSError as error:
        raise storage.place_error(task.output_uri, error) from error


def _without_output(row: LedgerRow, ref: PhotoRef) -> Outcome:
    return Outcome(row, ref.fingerprint, 0)


def _row(
    ref: PhotoRef, status: Literal["restored", "quarantined", "failed", "skipped"], reason: str, message: str
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
