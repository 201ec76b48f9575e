"""Records of an evaluation: tasks and reports of the workers, rows of scores, panels of images."""

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
"""Title of a subject in tables and panels; `hq` is the ground truth."""


@dataclass(frozen=True)
class EvaluateTask:
    """Some held-out faces of a dataset, to be restored by one cascade and measured.

    `dataset` is its folder, `variant` the number of the stored degradation, and `seeds` are the seeds of the
    sampler. `panels` are those of the keys whose images are returned with the report.
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
    """Scores of one image, in the order of the report's metrics; `seed` is None for the input."""

    key: str
    subject: Subject
    seed: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The images of one face as PNG bytes, all of hq_px: the subjects (first seed) and the ground truth."""

    key: str
    lq: bytes
    irm1: bytes
    irm2: bytes
    tem: bytes
    hq: bytes

    def images(self) -> tuple[tuple[str, bytes], ...]:
        """Name and PNG of every image, in the order of the columns."""
        return (("lq", self.lq), ("irm1", self.irm1), ("irm2", self.irm2), ("tem", self.tem), ("hq", self.hq))


@dataclass(frozen=True)
class EvaluateReport:
    """The measurements of one task: a row for each image, and the requested panels."""

    index: int
    metrics: tuple[MetricInfo, ...]
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...]
    seconds: float
