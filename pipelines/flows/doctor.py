"""Checks of the driver, of a worker on every node, and of the places that they share.

Each check is a row: what was found, and, where something must be mended, what was expected and what to do.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from diffbfr.errors import DiffBFRError, one_line
from diffbfr.text import without_secrets
from pipelines import storage
from pipelines.cluster import Cluster
from pipelines.cluster.nodes import NodeReport
from pipelines.flows import machine_checks
from pipelines.flows.machine_checks import REQUIREMENTS, Requirement
from pipelines.flows.places import marked, require_mark

_PACKAGES: Final = frozenset(requirement.package for requirement in REQUIREMENTS)
MOST_OFFSET_S: Final = 60.0
"""Clocks may differ by this: S3 refuses requests that are 15 minutes off, and heartbeats count minutes."""


@dataclass(frozen=True)
class DoctorTask:
    """What one process checks: the root, and a file in it that the driver wrote ("" for none)."""

    root: str
    mark: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of one check of one process."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Examination:
    """What one process found, and its clock before and after (s since 1970)."""

    findings: tuple[Finding, ...]
    began: float
    ended: float


@dataclass(frozen=True)
class Check:
    """The result of one check: the process, the subject, and what was found."""

    where: str
    what: str
    ok: bool
    detail: str

    @property
    def is_package(self) -> bool:
        """True for the version of a package or of Python."""
        return self.what in _PACKAGES


def doctor(root: str, tracking: str | None, cluster: Cluster) -> tuple[Check, ...]:
    """Run every check in this process and on every node; a failed check is a row, not an exception."""
    root = storage.absolute(root)
    checks = [*_rows("driver", examine(DoctorTask(root)).findings), *_tracking(root, tracking)]
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            mark = ""
            with suppress(Exception):  # the row about storage says why
                mark = stack.enter_context(marked(root))
            reports = cluster.on_each_node(examine, DoctorTask(root, mark))
    except Exception as error:  # any reason why no worker answers is a result
        return (*checks, Check("worker", "answers", False, _explain(error)))
    seconds = time.monotonic() - started
    if not reports:
        checks.append(Check("worker", "answers", False, _NO_NODE))
    for report in reports:
        checks += _of_node(report, report.node if cluster.is_joined else "worker", seconds)
    return (*checks, _attempt_flag("driver", "closed to others", cluster.exposure))


_NO_NODE: Final = (
    "no node of the cluster has CPUs; expected at least one that takes work; add a worker with "
    "`ray start --address=HOST:PORT`"
)


def examine(task: DoctorTask) -> Examination:
    """Run the checks of one process."""
    began = time.time()
    findings = [_version(requirement) for requirement in REQUIREMENTS]
    findings.append(_attempt("storage", lambda: f"{without_secrets(task.root)}: {storage.probe(task.root)}"))
    if task.mark:
        findings.append(_attempt("same root", lambda: require_mark(task.mark)))
    findings.append(_attempt("space", lambda: machine_checks.check_space(machine_checks.space_limits())))
    findings.append(_attempt("device", machine_checks.check_device))
    return Examination(tuple(findings), began, time.time())


def _of_node(report: NodeReport[Examination], where: str, seconds: float) -> list[Check]:
    if report.report is None:
        return [Check(where, "answers", False, _explain(report.error or Exception("no answer")))]
    found = report.report
    offset = machine_checks.clock_offset(report.asked, found.began, found.ended, report.answered)
    clock = f"differs by {abs(offset):.0f} s or more" if offset else "agrees with the driver's"
    if abs(offset) > MOST_OFFSET_S:
        clock += f" from the driver's; expected less than {MOST_OFFSET_S:.0f}; set the clock (NTP)"
    return [
        Check(where, "answers", True, f"within {seconds:.1f} s"),
        *_rows(where, found.findings),
        Check(where, "clock", abs(offset) <= MOST_OFFSET_S, clock),
    ]


def _rows(where: str, findings: tuple[Finding, ...]) -> list[Check]:
    return [Check(where, finding.what, finding.ok, finding.detail) for finding in findings]


def _version(requirement: Requirement) -> Finding:
    return Finding(requirement.package, *machine_checks.check_version(requirement))


def _tracking(root: str, tracking: str | None) -> list[Check]:
    """A round trip to the registry, and the version of its server, which is not this machine's."""
    from pipelines.tracking.access import server_version
    from pipelines.tracking.checks import round_trip
    from pipelines.tracking.connection import open_registry

    trip = _attempt("tracking", lambda: round_trip(open_registry(root, tracking)))
    checks = _rows("driver", (trip,))
    if trip.ok and tracking is not None and tracking.startswith("http"):
        text = server_version(tracking.rstrip("/"))
        hole = machine_checks.describe_hole("mlflow", machine_checks.parse_version(text)) if text else ""
        detail = f"MLflow {text or 'of a version that it does not tell'}{': ' if hole else ''}{hole}"
        checks.append(Check("tracking server", "version", not hole, detail))
    return checks


def _attempt(what: str, check: Callable[[], str]) -> Finding:
    """Run one check; any exception is a failed check."""
    try:
        return Finding(what, True, check())
    except Exception as error:
        return Finding(what, False, _explain(error))


def _attempt_flag(where: str, what: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(where, what, *check())
    except Exception as error:
        return Check(where, what, False, _explain(error))


def _explain(error: BaseException) -> str:
    """One line that says what was found, what was expected and what to do."""
    line = one_line(error)
    if isinstance(error, DiffBFRError):
        return line
    remedy = storage.remedy_for(error) if isinstance(error, OSError) else ""
    return f"{line}; expected no such error; {remedy or 'check the place, its address and your rights to it'}"
