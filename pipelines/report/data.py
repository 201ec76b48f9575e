"""The content of a report page."""

from dataclasses import dataclass
from typing import Literal

from pipelines.evaluation.scores import Evaluation


@dataclass(frozen=True)
class RestoredFace:
    """A face of a whole photo, cut out of it before and after; `after` is None if it was left alone."""

    title: str
    detail: str
    before: bytes
    after: bytes | None
    is_doubtful: bool = False


@dataclass(frozen=True)
class RestoredPhoto:
    """One input of a restored archive.

    `before` and `after` are image files that a browser can show, or None. `spread` is a heat map of the
    differences between several restorations. A whole photo (`is_whole`) is shown large, with its faces, but
    for `num_more_faces` of them.
    """

    name: str
    status: str
    before: bytes | None
    after: bytes | None
    note: str = ""
    spread: bytes | None = None
    is_whole: bool = False
    faces: tuple[RestoredFace, ...] = ()
    num_more_faces: int = 0


@dataclass(frozen=True)
class SlowPhoto:
    """A photo that took long: its seconds, and how many of its faces were restored."""

    name: str
    seconds: float
    num_faces: int


@dataclass(frozen=True)
class RefusedReason:
    """Why inputs were refused or failed, how many, and one of them."""

    reason: str
    count: int
    name: str
    message: str


@dataclass(frozen=True)
class ArchiveFacts:
    """A restored archive: photos a second, its faces by what became of them, the slowest, the refused."""

    rate: float = 0.0
    faces: tuple[tuple[str, int], ...] = ()
    slowest: tuple[SlowPhoto, ...] = ()
    refused: tuple[RefusedReason, ...] = ()


@dataclass(frozen=True)
class TrainingCurve:
    """The loss of one stage over the training samples: (samples, loss) with increasing samples."""

    stage: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LineageLink:
    """One node of the lineage from photos to cascade: its title, its digest or id, and a detail."""

    title: str
    digest: str
    detail: str = ""


@dataclass(frozen=True)
class StepLine:
    """One step of the run: whether it ran or was a cache hit, why, and the seconds that it took to run."""

    name: str
    action: Literal["HIT", "RUN"]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class ReportData:
    """The content of a page.

    `lineage` has tiers from the photos to the cascade; the links of one tier are shown side by side. `counts`
    is the number of inputs of the archive by status, and `restored` are the inputs that the page shows.
    """

    recipe: str
    command: str
    faces: str
    created: str
    seconds: float
    evaluation: Evaluation | None
    restored: tuple[RestoredPhoto, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    archive: ArchiveFacts | None = None
    curves: tuple[TrainingCurve, ...] = ()
    lineage: tuple[tuple[LineageLink, ...], ...] = ()
    steps: tuple[StepLine, ...] = ()
    notes: tuple[str, ...] = ()
