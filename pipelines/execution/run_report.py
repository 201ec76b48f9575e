"""What a run came to: a line a step, and where to look."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StepReport:
    """One line of the plan: what happens to a step and why, how much work that is, and how long it took."""

    name: str
    action: Literal["HIT", "RUN"]
    reason: str
    work: str
    seconds: float
    artifact: str


@dataclass(frozen=True)
class RunReport:
    """What a run came to. `page` is the report that a person would rather look at; "" while there is none."""

    recipe: str
    root: str
    steps: tuple[StepReport, ...]
    seconds: float
    page: str = ""
    scores: str = ""
