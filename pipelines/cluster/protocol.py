"""What a training worker reports to its driver. Importing this costs no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


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
