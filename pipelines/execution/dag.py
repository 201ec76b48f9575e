"""The steps of a run as a graph of artifacts, and the plan: what must run and why (`runner` runs it).

Because the inputs of a step are ids, the whole graph is known before anything runs, and a run with nothing to
do imports neither Ray nor torch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffbfr.errors import UsageError
from pipelines.execution.artifact_store import ArtifactStore, Identity, OutputRef, Record
from pipelines.execution.decision import Decision, decide


@dataclass(frozen=True)
class StepOutput:
    """What a step left in its folder: files by name, with paths relative to it, and metadata for the record.

    `content` is a digest of what later steps see. None means the digest of all files; it fits where no file
    holds a time or a place.
    """

    outputs: Mapping[str, str | OutputRef]
    metadata: Mapping[str, Any]
    content: str | None = None


@dataclass(frozen=True)
class Step:
    """One node of the graph. `build` fills the artifact's folder; `estimate` says how much work that is.

    `share` is the fraction of the cluster that building takes: steps whose shares add up to no more than 1
    can run in parallel.
    """

    identity: Identity
    build: Callable[[str], StepOutput]
    estimate: Callable[[], str]
    share: Callable[[], float] = lambda: 1.0

    @property
    def name(self) -> str:
        """The step's name, which is also its folder under `artifacts/`."""
        return self.identity.step

    @property
    def id(self) -> str:
        """The artifact that it makes."""
        return self.identity.id


@dataclass(frozen=True)
class StepResult:
    """A step whose artifact exists, and whether this run built it (`decision`)."""

    step: Step
    decision: Decision
    record: Record


def truncate_at(steps: Sequence[Step], name: str | None) -> list[Step]:
    """The steps that `name` needs, with itself last; all steps for None."""
    if name is None:
        return list(steps)
    by_name = {step.name: step for step in steps}
    if name not in by_name:
        raise UsageError(f"no step is called {name}; expected one of {', '.join(by_name)}")
    wanted, waiting = set(), [by_name[name].id]
    by_id = {step.id: step for step in steps}
    while waiting:
        step = by_id.get(waiting.pop())
        if step is not None and step.id not in wanted:
            wanted.add(step.id)
            waiting += step.identity.inputs.values()
    return [step for step in steps if step.id in wanted]


def plan(steps: Sequence[Step], store: ArtifactStore) -> list[Decision]:
    """HIT or RUN for each step, with the reason."""
    decisions: list[Decision] = []
    # An artifact that will be rebuilt from other inputs keeps its id and gets other content. Steps that read
    # it must run as well, although nothing in their own identity changes.
    rebuilt: set[str] = set()
    for step in steps:
        decision = decide(store, step.identity)
        source = next((name for name, id_ in step.identity.inputs.items() if id_ in rebuilt), None)
        record = store.by_id(step.id) if decision.action == "RUN" or source else None
        if record is not None and (source or store.stale_input(record)):
            rebuilt.add(step.id)
            if decision.action == "HIT":
                decision = Decision(
                    step.name, "RUN", f"input {source} is rebuilt from other inputs", step.identity
                )
        decisions.append(decision)
    return decisions


def plan_digest(steps: Sequence[Step]) -> str:
    """Identity of a whole run: 20 hex digits of its steps' ids, in order."""
    return hashlib.sha256(json.dumps([step.id for step in steps]).encode()).hexdigest()[:20]
