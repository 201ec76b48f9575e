"""What the tables compare: how the stages are sampled, with the paper's starts at the size of the faces."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from diffbfr.errors import UsageError
from diffbfr.schedule import noise_schedule
from diffbfr.stages import ScheduleSpec
from pipelines.experiments.paper.numbers import CHOSEN_N1, CHOSEN_N2, N1S, N2S, PAPER_PX

TableName = Literal["2", "3", "4"]


@dataclass(frozen=True)
class Arm:
    """One way to restore a face; `n1` and `n2` are the paper's starts, at 512 px.

    Without `n1` the stage at full size starts from pure noise, without `n2` there is no TEM. With `one_stage`
    it is conditioned on the low-quality face, and there is no IRM-1. `lq` is no restoration.
    """

    name: str
    title: str
    n1: int | None = None
    n2: int | None = None
    one_stage: bool = False
    is_input: bool = False


LQ: Final = Arm("lq", "LQ input", is_input=True)
IRM_S: Final = Arm("irm-s", "IRM-s", one_stage=True)
IRM_C: Final = Arm("irm-c", "IRM-c")


def _truncated(n1: int) -> Arm:
    return Arm(f"n1-{n1}", f"N1 = {n1}" + (" (IRM-c-t)" if n1 == CHOSEN_N1 else ""), n1=n1)


def _with_tem(n2: int) -> Arm:
    title = f"N2 = {n2}" + (" (TEM-w)" if n2 == CHOSEN_N2 else "")
    return Arm(f"n2-{n2}", title, n1=CHOSEN_N1, n2=n2)


IRM_C_T: Final = _truncated(CHOSEN_N1)
TEM_W: Final = _with_tem(CHOSEN_N2)
TABLES: Final[Mapping[TableName, tuple[Arm, ...]]] = MappingProxyType(
    {
        "2": (LQ, IRM_S, IRM_C, IRM_C_T, TEM_W),
        "3": tuple(map(_truncated, N1S)),
        "4": tuple(map(_with_tem, N2S)),
    }
)


def arms_of(table: str) -> tuple[Arm, ...]:
    """The arms of a table; UsageError if the paper's table is none of these."""
    if table not in TABLES:
        raise UsageError(f"found table {table!r}; expected {', '.join(TABLES)}")
    return TABLES[table]  # type: ignore[index]


def scaled_start(schedule: ScheduleSpec, start: int, px: int) -> int:
    """The step at `px` whose noise hides as much of a face as that of `start` does at 512 px.

    Averaging an image to a k-th of its side divides the noise by k and keeps the signal: the ratio of noise
    to signal, sqrt(1 - gamma) / sqrt(gamma), is scaled by px / 512 (as `diffbfr.stages` scales TEM's start).
    """
    table = noise_schedule(schedule).half_log_snr[1:]
    wanted = float(table[start - 1]) + math.log(PAPER_PX / px)
    return int((table - wanted).abs().argmin()) + 1
