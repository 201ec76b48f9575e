"""What the page of a run shows."""

from dataclasses import dataclass
from typing import Literal

from pipelines.evaluation.scores import Evaluation


@dataclass(frozen=True)
class RestoredPhoto:
    """One input of the restored archive: its file and the restored picture, in any format a browser shows;
    None where there is none.

    `spread` shows where several restorations differ.
    """

    name: str
    status: str
    before: bytes | None
    after: bytes | None
    note: str = ""
    spread: bytes | None = None


@dataclass(frozen=True)
class TrainingCurve:
    """The loss of one stage over the samples it has seen: (samples, loss) with rising samples."""

    stage: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LineageLink:
    """One thing in the chain from photos to cascade: what it is, its digest or id, and a few words."""

    title: str
    digest: str
    detail: str = ""


@dataclass(frozen=True)
class StepLine:
    """One step of the run: whether it ran or was there already, why, and how many seconds its making took."""

    name: str
    action: Literal["HIT", "RUN"]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class ReportData:
    """The page of a run. `lineage` comes in tiers from the photos to the cascade; links of one tier stand
    side by side.

    `counts` says how many inputs of the archive ended with each status; `restored` are those that the page
    shows.
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
