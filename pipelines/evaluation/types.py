"""What an evaluation is asked for and what it measured: tasks, reports, rows and panels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from diffbfr.metrics.info import MetricInfo
from diffbfr.stages import Mode

if TYPE_CHECKING:
    from pipelines.execution.model_ref import ModelRef

Subject = Literal["lq", "irm1", "irm2", "tem"]
SUBJECTS: Final[tuple[Subject, ...]] = get_args(Subject)
TITLES: Final[Mapping[str, str]] = {"lq": "LQ", "irm1": "IRM-1", "irm2": "IRM-2", "tem": "TEM", "hq": "HQ"}
"""How a subject is written in tables and over pictures; `hq` is the ground truth."""


@dataclass(frozen=True)
class EvaluateTask:
    """Some held-out faces of a dataset, restored by one cascade and measured.

    `dataset` is its folder; `variant` says which pre-sampled degradation, `seeds` which draws of the sampler;
    `panels` names those of the keys whose pictures come back with the report.
    """

    index: int
    dataset: str
    cascade: "ModelRef"
    keys: tuple[str, ...]
    variant: int = 0
    seeds: tuple[int, ...] = (0,)
    mode: Mode = "fast"
    batch: int = 8
    squeezenet: str | None = None
    identity: str | None = None
    panels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Scores of one picture: values in the order of the report's cards. `seed` is None for the input,
    which nobody drew.
    """

    key: str
    subject: Subject
    seed: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The pictures of one face as PNG bytes, all of hq_px: the subjects (first draw) and the ground truth."""

    key: str
    lq: bytes
    irm1: bytes
    irm2: bytes
    tem: bytes
    hq: bytes

    def pictures(self) -> tuple[tuple[str, bytes], ...]:
        """Name and PNG of every picture, in the order of the columns."""
        return (("lq", self.lq), ("irm1", self.irm1), ("irm2", self.irm2), ("tem", self.tem), ("hq", self.hq))


@dataclass(frozen=True)
class EvaluateReport:
    """What one task measured: a row a picture, and the panels that were asked for."""

    index: int
    cards: tuple[MetricInfo, ...]
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]
    seconds: float
