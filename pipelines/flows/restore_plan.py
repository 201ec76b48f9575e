"""What is left to do for an archive: which outcomes still stand, which inputs have the same bytes, what
each output is called.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from pipelines.cluster import Cluster
from pipelines.restoration.outcomes import UNREADABLE, Outcome
from pipelines.restoration.output_names import output_names
from pipelines.sources import PhotoRef, PhotoSource, PhotoUnreadableError
from pipelines.steps.restore import Work

_HASHES_PER_TASK: Final = 64
Item = TypeVar("Item")


@dataclass(frozen=True)
class RestorePlan:
    """What is left to do: photos to restore, and duplicates with the name of the input that has the same
    bytes.
    """

    works: tuple[Work, ...]
    duplicates: tuple[tuple[Work, str], ...]


def find_standing(
    source: PhotoSource, refs: Sequence[PhotoRef], known: Iterable[Outcome], sizes: Mapping[str, int]
) -> dict[str, Outcome]:
    """Pick the outcomes that still hold, by name. An input that could not be read is tried here: only if
    it can be now is there work.
    """
    listed = {ref.name: ref for ref in refs}
    standing: dict[str, Outcome] = {}
    unreadable: dict[str, Outcome] = {}
    for outcome in known:
        ref = listed.get(outcome.row.name)
        if ref is None or ref.fingerprint != outcome.fingerprint:
            continue
        if outcome.stands(ref, sizes):
            standing[ref.name] = outcome
        elif outcome.row.reason == UNREADABLE:
            unreadable[ref.name] = outcome
    for name, outcome in unreadable.items():
        if name not in standing:
            try:
                source.read(listed[name])
            except PhotoUnreadableError:
                standing[name] = outcome
    return standing


def plan_restore(
    source: PhotoSource,
    refs: Sequence[PhotoRef],
    standing: Mapping[str, Outcome],
    cluster: Cluster,
    prefix: str = "",
) -> RestorePlan:
    """Name the outputs and find the duplicates; of inputs with the same bytes the first by name is restored,
    or the one that already is.

    `prefix` is the folder of the mirror inside the output.
    """
    taken = {
        name: known.row.output.removeprefix(prefix) for name, known in standing.items() if known.row.output
    }
    outputs = {
        name: prefix + output for name, output in output_names((ref.name for ref in refs), taken).items()
    }
    digests = _match(source, refs, standing, cluster)
    originals = {
        known.row.sha256: name
        for name, known in standing.items()
        if not known.row.duplicate_of and known.row.sha256
    }
    works: list[Work] = []
    duplicates: list[tuple[Work, str]] = []
    for ref in refs:
        if ref.name in standing:
            continue
        work, digest = Work(ref, outputs[ref.name]), digests.get(ref.name, "")
        if digest and digest in originals:
            duplicates.append((work, originals[digest]))
            continue
        works.append(work)
        if digest:
            originals[digest] = ref.name
    return RestorePlan(tuple(works), tuple(duplicates))


def units(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut a list into pieces of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True)
class _HashTask:
    index: int
    source: PhotoSource
    refs: tuple[PhotoRef, ...]


def _match(
    source: PhotoSource, refs: Sequence[PhotoRef], standing: Mapping[str, Outcome], cluster: Cluster
) -> dict[str, str]:
    """Sha256 by name of the unfinished inputs that share their size with another; no other input can have
    a twin.
    """
    sharing = Counter(ref.bytes for ref in refs)
    asked = [ref for ref in refs if sharing[ref.bytes] > 1 and ref.name not in standing]
    tasks = [
        _HashTask(index, source, tuple(unit)) for index, unit in enumerate(units(asked, _HASHES_PER_TASK))
    ]
    answers = (
        cluster.map(_hash, tasks, label="match", unit="photos", weight=lambda task: len(task.refs))
        if tasks
        else []
    )
    digests = (digest for answer in answers for digest in answer)
    return {ref.name: digest for ref, digest in zip(asked, digests, strict=True) if digest}


def _hash(task: _HashTask) -> tuple[str, ...]:
    """Sha256 of each photo; "" where it cannot be read, which its own unit will say."""
    digests = []
    for ref in task.refs:
        try:
            digests.append(hashlib.sha256(task.source.read(ref)).hexdigest())
        except PhotoUnreadableError:
            digests.append("")
    return tuple(digests)
