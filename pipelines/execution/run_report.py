"""The result of a run: a line a step, the scores, and the path of the page."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StepReport:
    """One line of the plan or of the report.

    `work` is the estimate of a step that will run ("" afterwards), `seconds` the time that it took,
    `artifact` its id.
    """

    name: str
    action: Literal["HIT", "RUN"]
    reason: str
    work: str
    seconds: float
    artifact: str


@dataclass(frozen=True)
class RunReport:
    """The result of a run; `page` is the path of `report.html`, "" as long as the run is not complete."""

    recipe: str
    root: str
    steps: tuple[StepReport, ...]
    seconds: float
    page: str = ""
    scores: str = ""
