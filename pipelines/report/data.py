"""The content of a report page."""

from dataclasses import dataclass
from typing import Literal

from pipelines.evaluation.scores import Evaluation


@dataclass(frozen=True)
class RestoredPhoto:
    """One input of a restored archive.

    `before` and `after` are image files that a browser can show, or None. `spread` is a heat map of the
    differences between several restorations.
    """

    name: str
    status: str
    before: bytes | None
    after: bytes | None
    note: str = ""
    spread: bytes | None = None


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
    curves: tuple[TrainingCurve, ...] = ()
    lineage: tuple[tuple[LineageLink, ...], ...] = ()
    steps: tuple[StepLine, ...] = ()
    notes: tuple[str, ...] = ()
