"""Plan of a restoration: which outcomes are current, which inputs have equal bytes, and the output names.

All of it is in the index (`pipelines.restoration.archive_index`); memory holds a task at a time.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.restoration.archive_index import ArchiveIndex
from pipelines.restoration.outcomes import Outcome
from pipelines.restoration.output_names import PNG_NAMING, Naming
from pipelines.restoration.work import WorkItem
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError

_PHOTOS_PER_TASK: Final = 64
_UNITS_PER_WINDOW: Final = 64
Item = TypeVar("Item")


def find_current(source: PhotoSource, index: ArchiveIndex, damaged: Iterable[str]) -> None:
    """Give each input its outcome that is current, unless it is `damaged`.

    An input that could not be read is read here once more. If that fails again, its outcome is current.
    """
    index.choose_current()
    for photo, ref, outcome in index.unreadable():
        try:
            source.read(ref)
        except PhotoUnreadableError:
            index.set_outcome(photo, outcome)
    index.invalidate(damaged)


def plan_restore(
    source: PhotoSource,
    index: ArchiveIndex,
    output: str,
    cluster: Cluster,
    prefix: str = "",
    naming: Naming = PNG_NAMING,
) -> None:
    """Find the duplicates among what is left, and name the outputs.

    Of inputs with equal bytes one that is already restored is the original, else the first in the listing. A
    finished original whose file is not what was restored is left to do again. `prefix` is the folder of the
    mirror inside the output.
    """
    _find_duplicates(source, index, cluster)
    changed = [outcome.row.name for outcome in index.finished_originals() if not _is_intact(outcome, output)]
    if changed:
        index.invalidate(changed)
        _find_duplicates(source, index, cluster)
    if index.num_left():
        index.assign_outputs(prefix, naming)


def split_units(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Split into units of `size`; the last may be shorter."""
    remaining = iter(items)
    while unit := tuple(islice(remaining, size)):
        yield unit


def restore_units(index: ArchiveIndex, size: int) -> Iterator[tuple[WorkItem, ...]]:
    """Yield what is left in units of `size`, of each window of the listing the largest photos first.

    The units follow from the listing and what is left, so that the same command makes the same ones again.
    """
    for window in index.to_restore(_UNITS_PER_WINDOW * size):
        ordered = sorted(window, key=lambda photo: -photo[0].bytes)
        yield from split_units((WorkItem(ref, output) for ref, output in ordered), size)


def _find_duplicates(source: PhotoSource, index: ArchiveIndex, cluster: Cluster) -> None:
    """Compare the inputs that are left by sha256 with those of their size.

    An input whose size is unique has no duplicate, so it is not read here.
    """
    count = index.count_same_size()
    if count:
        units = enumerate(split_units(index.same_size(), _PHOTOS_PER_TASK))
        cluster.for_each(
            _digest,
            (_DigestTask(number, source, unit) for number, unit in units),
            lambda digests: index.set_digests(digests),
            label="match",
            total=count,
            unit="photos",
            weight=lambda task: len(task.photos),
        )
    index.find_duplicates()


def _is_intact(outcome: Outcome, output: str) -> bool:
    return all(storage.digest(storage.join(output, file.name)) == file.sha256 for file in outcome.files())


@dataclass(frozen=True)
class _DigestTask:
    index: int
    source: PhotoSource
    photos: tuple[tuple[int, PhotoRef], ...]


def _digest(task: _DigestTask) -> tuple[tuple[int, str], ...]:
    """Sha256 of each photo by its number; "" for an unreadable one, which the restore step reports."""
    digests = []
    for photo, ref in task.photos:
        try:
            digests.append((photo, hashlib.sha256(task.source.read(ref)).hexdigest()))
        except PhotoUnreadableError:
            digests.append((photo, ""))
    return tuple(digests)
