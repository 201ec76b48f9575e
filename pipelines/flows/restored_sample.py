"""What the page of a restored archive shows of it: chosen in one pass over its tables, in bounded memory."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipelines.dataset.manifest import LedgerRow
from pipelines.report.data import ArchiveFacts, RefusedReason, SlowPhoto
from pipelines.restoration.face_rows import FaceRow

NUM_PHOTOS: Final = 8
NUM_DOUBTFUL: Final = 5
NUM_REFUSED: Final = 8
NUM_SLOWEST: Final = 5
NUM_REASONS: Final = 20
MOST_FACES: Final = 6
"""Of one photo."""


@dataclass(frozen=True)
class FaceSample:
    """The doubtful faces, the least consistent first, and the number of all faces by what became of them."""

    doubtful: tuple[FaceRow, ...]
    counts: tuple[tuple[str, int], ...]


def sample_faces(faces: Iterable[FaceRow]) -> FaceSample:
    """Read the faces once."""
    counts: Counter[str] = Counter()

    def doubtful() -> Iterable[FaceRow]:
        for face in faces:
            counts[face.verdict if face.status == "left_alone" else face.status] += 1
            if face.low_confidence or face.status == "failed":
                counts["doubtful"] += face.low_confidence
                yield face

    worst = heapq.nsmallest(NUM_DOUBTFUL, doubtful(), key=_consistency)
    return FaceSample(tuple(worst), tuple(counts.most_common()))


@dataclass(frozen=True)
class FacesShown:
    """The faces of one photo that are shown, doubtful ones first, and how many are not."""

    faces: tuple[FaceRow, ...] = ()
    num_more: int = 0


def faces_of(faces: Iterable[FaceRow], photos: frozenset[str]) -> dict[str, FacesShown]:
    """The faces of some photos, at most `MOST_FACES` of each."""
    found: dict[str, list[FaceRow]] = {}
    for face in faces:
        if face.photo in photos:
            found.setdefault(face.photo, []).append(face)
    return {name: _shown(those) for name, those in found.items()}


def _shown(faces: Sequence[FaceRow]) -> FacesShown:
    chosen = heapq.nsmallest(MOST_FACES, faces, key=_consistency)
    return FacesShown(tuple(chosen), len(faces) - len(chosen))


@dataclass(frozen=True)
class RowSample:
    """The rows to be shown, those that were refused, and what is told of all."""

    shown: tuple[LedgerRow, ...]
    refused: tuple[LedgerRow, ...]
    facts: ArchiveFacts


def sample_rows(
    rows: Iterable[LedgerRow],
    first: frozenset[str],
    faces: tuple[tuple[str, int], ...],
    rate: float,
) -> RowSample:
    """Read the ledger once; photos named in `first` are shown, then others drawn by a digest of their names.

    `rate` is the number of photos a second of this run, 0 if it had nothing to do.
    """
    wanted: list[LedgerRow] = []
    others: list[tuple[str, LedgerRow]] = []
    refused: list[tuple[str, LedgerRow]] = []
    slowest: list[tuple[float, str, int]] = []
    reasons: Counter[str] = Counter()
    examples: dict[str, LedgerRow] = {}
    for row in rows:
        if row.status in ("quarantined", "failed"):
            _keep(refused, row, NUM_REFUSED)
            reasons[row.reason] += 1
            examples.setdefault(row.reason, row)
        if row.name in first:
            wanted.append(row)
        elif row.status == "restored":
            _keep(others, row, NUM_PHOTOS)
        if row.seconds and not row.duplicate_of:
            slowest.append((row.seconds, row.name, row.num_faces))
            if len(slowest) > 100 * NUM_SLOWEST:
                slowest = heapq.nlargest(NUM_SLOWEST, slowest)
    shown = (*wanted, *(row for _, row in sorted(others, key=_digest_first)))[:NUM_PHOTOS]
    facts = ArchiveFacts(
        rate=rate,
        faces=faces,
        slowest=tuple(SlowPhoto(name, s, num) for s, name, num in heapq.nlargest(NUM_SLOWEST, slowest)),
        refused=tuple(
            RefusedReason(reason, number, examples[reason].name, examples[reason].message)
            for reason, number in reasons.most_common(NUM_REASONS)
        ),
    )
    few = sorted(refused, key=_digest_first)[:NUM_REFUSED]
    return RowSample(shown, tuple(row for _, row in few), facts)


def _keep(kept: list[tuple[str, LedgerRow]], row: LedgerRow, num: int) -> None:
    """Keep the rows whose names have the smallest digests: the same for any order and number of rows."""
    kept.append((hashlib.sha256(row.name.encode("utf-8", "replace")).hexdigest(), row))
    if len(kept) > 10 * num:
        kept.sort(key=_digest_first)
        del kept[num:]


def _digest_first(entry: tuple[str, LedgerRow]) -> str:
    return entry[0]


def _consistency(face: FaceRow) -> tuple[int, float]:
    """Failed and doubtful faces first, of these the least consistent; left alone ones last."""
    if face.status == "left_alone":
        return 2, 0.0
    is_doubtful = face.low_confidence or face.status == "failed"
    return int(not is_doubtful), float("-inf") if face.consistency is None else face.consistency
