"""Plan of a restoration: which outcomes are current, which inputs have equal bytes, and the output names."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.restoration.outcomes import UNREADABLE, Outcome
from pipelines.restoration.output_names import PNG_NAMING, Naming, output_names
from pipelines.restoration.work import WorkItem
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError

_PHOTOS_PER_TASK: Final = 64
Item = TypeVar("Item")


@dataclass(frozen=True)
class RestorePlan:
    """What is left to do: photos to restore, and duplicates with the name of the input of equal bytes."""

    items: tuple[WorkItem, ...]
    duplicates: tuple[tuple[WorkItem, str], ...]


def find_current(
    source: PhotoSource, refs: Sequence[PhotoRef], known: Iterable[Outcome], sizes: Mapping[str, int]
) -> dict[str, Outcome]:
    """The known outcomes that are current, by input name.

    An input that could not be read is read here once more. If that fails again, its outcome is current.
    """
    listed = {ref.name: ref for ref in refs}
    current: dict[str, Outcome] = {}
    unreadable: dict[str, Outcome] = {}
    for outcome in known:
        ref = listed.get(outcome.row.name)
        if ref is None or ref.fingerprint != outcome.fingerprint:
            continue
        if outcome.is_current(ref, sizes):
            current[ref.name] = outcome
        elif outcome.row.reason == UNREADABLE:
            unreadable[ref.name] = outcome
    for name, outcome in unreadable.items():
        if name not in current:
            try:
                source.read(listed[name])
            except PhotoUnreadableError:
                current[name] = outcome
    return current


def plan_restore(
    source: PhotoSource,
    refs: Sequence[PhotoRef],
    current: Mapping[str, Outcome],
    cluster: Cluster,
    prefix: str = "",
    naming: Naming = PNG_NAMING,
) -> RestorePlan:
    """Name the outputs and find the duplicates.

    Of inputs with equal bytes one that is already restored is the original, else the first in the listing.
    `prefix` is the folder of the mirror inside the output.
    """
    taken = {
        name: known.row.output.removeprefix(prefix) for name, known in current.items() if known.row.output
    }
    outputs = output_names((ref.name for ref in refs), taken, naming)
    digests = _digest_equal_sizes(source, refs, current, cluster)
    # an input with the bytes of a finished one needs no restoration
    originals = {
        known.row.sha256: name
        for name, known in current.items()
        if not known.row.duplicate_of and known.row.sha256
    }
    items: list[WorkItem] = []
    duplicates: list[tuple[WorkItem, str]] = []
    for ref in refs:
        if ref.name in current:
            continue
        item = WorkItem(ref, prefix + outputs[ref.name])
        digest = digests.get(ref.name, "")
        if digest and digest in originals:
            duplicates.append((item, originals[digest]))
            continue
        items.append(item)
        if digest:
            originals[digest] = ref.name
    return RestorePlan(tuple(items), tuple(duplicates))


def find_changed_originals(plan: RestorePlan, current: Mapping[str, Outcome], output: str) -> frozenset[str]:
    """Finished inputs whose files are to be copied for a duplicate, but are not what was restored."""
    finished = {original for _, original in plan.duplicates if original in current}
    return frozenset(name for name in finished if not _is_intact(current[name], output))


def _is_intact(outcome: Outcome, output: str) -> bool:
    return all(storage.digest(storage.join(output, file.name)) == file.sha256 for file in outcome.files())


def split_units(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Split a list into units of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True)
class _DigestTask:
    index: int
    source: PhotoSource
    refs: tuple[PhotoRef, ...]


def _digest_equal_sizes(
    source: PhotoSource, refs: Sequence[PhotoRef], current: Mapping[str, Outcome], cluster: Cluster
) -> dict[str, str]:
    """Sha256 by name of each unfinished input that has the size of another one.

    An input whose size is unique has no duplicate, so it is not read here.
    """
    sharing = Counter(ref.bytes for ref in refs)
    candidates = [ref for ref in refs if sharing[ref.bytes] > 1 and ref.name not in current]
    units = split_units(candidates, _PHOTOS_PER_TASK)
    tasks = [_DigestTask(index, source, tuple(unit)) for index, unit in enumerate(units)]
    if not tasks:
        return {}
    digests: list[str] = []
    for unit in cluster.map(_digest, tasks, label="match", unit="photos", weight=lambda task: len(task.refs)):
        digests += unit
    return {ref.name: digest for ref, digest in zip(candidates, digests, strict=True) if digest}


def _digest(task: _DigestTask) -> tuple[str, ...]:
    """Sha256 of each photo; "" for an unreadable one, which the restore step reports."""
    digests = []
    for ref in task.refs:
        try:
            digests.append(hashlib.sha256(task.source.read(ref)).hexdigest())
        except PhotoUnreadableError:
            digests.append("")
    return tuple(digests)
