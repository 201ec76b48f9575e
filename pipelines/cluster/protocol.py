"""What workers report to their driver. Importing this costs no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Metrics:
    """Metrics of one step: `step` and `samples` count since the run began, `values` are named (loss, ...)."""

    step: int
    samples: int
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RestartStats:
    """How often a training was restarted, and its goodput in [0, 1].

    Goodput is the fraction of the wall time that went into steps which no earlier attempt had made. The rest
    is start-up, waiting for machines, and steps that were lost and made again.
    """

    restarts: int
    goodput: float


@dataclass(frozen=True)
class ReportCounts:
    """What a task did: photos by outcome (`restored`, `quarantined`, ...), and the faces in them."""

    outcomes: Mapping[str, int]
    faces: int = 0


@runtime_checkable
class CountedReport(Protocol):
    """A report of a task that tells its counts, which are then exported as metrics."""

    def counts(self) -> ReportCounts:
        """What this task did, without what an earlier run had done."""


class TrainingReporter(Protocol):
    """A worker reports metrics now and then, and a heartbeat after each step."""

    def report(self, metrics: Metrics) -> None:
        """Report metrics; those of ranks other than 0 are dropped."""

    def heartbeat(self, step: int) -> None:
        """Report that `step` steps are done; the same number again means that a known wait goes on."""

    def finishing(self) -> None:
        """Report that no step follows, only the upload of the last checkpoint, which may take long."""

    def restart_stats(self) -> RestartStats:
        """Return the statistics of this training so far."""
