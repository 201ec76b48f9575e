"""Copy: a unit of duplicates in, the files of their originals under the names of their own out."""

import hashlib
import time
from dataclasses import dataclass, replace

from pipelines import storage
from pipelines.dataset.manifest import LedgerRow
from pipelines.restoration.access import file_mode
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.output_names import copied_name
from pipelines.restoration.request import RestoreRequest
from pipelines.restoration.samples import other_outputs
from pipelines.restoration.work import WorkItem, empty_row, without_output
from pipelines.steps.restore import BatchReport, commit, output_file, write_outputs

_PNG_SIGNATURE = b"\x89PNG"


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
    request: RestoreRequest


def copy_duplicates(task: CopyTask) -> BatchReport:
    """Copy the original's images, or its refusal, to each duplicate; then write the unit's record."""
    outcomes = tuple(_copy(copy, task) for copy in task.copies)
    commit(task.output_uri, outcomes, task.request)
    return BatchReport(outcomes)


def _copy(copy: Copy, task: CopyTask) -> Outcome:
    original, ref = copy.original, copy.item.ref
    if not original.output:
        return without_output(replace(original, name=ref.name, duplicate_of=original.name, seconds=0.0), ref)
    started = time.perf_counter()
    # the file is read again: it may have been changed since an earlier run restored it
    try:
        image = storage.read_bytes(storage.join(task.output_uri, original.output))
        digest = hashlib.sha256(image).hexdigest()
    except OSError as error:
        if not storage.is_about_one_file(error, writing=False):
            raise storage.place_error(task.output_uri, error, "read") from error
        digest = ""
    if digest != original.output_sha256:
        failed = replace(
            empty_row(ref, "failed", "original_changed", f"{original.output} changed after it was restored"),
            sha256=original.sha256,
            duplicate_of=original.name,
        )
        return without_output(failed, ref)  # the next run restores both
    output = copy.item.output
    photos = task.request.photos
    if photos is not None and not photos.file_format and not image.startswith(_PNG_SIGNATURE):
        output = copied_name(output, ref.name)
    contents = {output: image}
    originals = other_outputs(original.output, original.samples)
    for theirs, ours in zip(originals, other_outputs(output, original.samples), strict=True):
        contents[ours] = storage.read_bytes(storage.join(task.output_uri, theirs))
    refusal = write_outputs(task.output_uri, contents, file_mode(task.request.input, ref.uri))
    row = replace(original, name=ref.name, duplicate_of=original.name, seconds=time.perf_counter() - started)
    if refusal is not None:
        emptied = replace(row, output="", output_sha256="", model_digest="", num_faces=0)
        failed = replace(emptied, status="failed", reason=refusal.reason, message=refusal.message)
        return without_output(failed, ref)
    done = replace(row, output=output)
    if original.status != "failed":
        done = replace(done, status="duplicate")
    first, *others = (output_file(name, content) for name, content in contents.items())
    return Outcome(done, ref.fingerprint, first.num_bytes, tuple(others))
