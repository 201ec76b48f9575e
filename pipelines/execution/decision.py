"""What a run does with a step: nothing, if its artifact is there and valid, or run it, with the reason."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pipelines.execution.artifact_store import JSON, SHOWN_DIGITS, ArtifactStore, Identity

_NUM_REASONS = 3
_ABSENT = "absent"


@dataclass(frozen=True)
class Decision:
    """HIT or RUN for one step, with the reason in words."""

    step: str
    action: Literal["HIT", "RUN"]
    reason: str
    identity: Identity


def decide(store: ArtifactStore, identity: Identity) -> Decision:
    """HIT if the artifact exists and is valid; else RUN, with what differs from the step's newest record."""
    record = store.finished(identity)
    if record is not None:
        problem = store.problem(record)
        return Decision(identity.step, "RUN" if problem else "HIT", problem or "nothing changed", identity)
    newest = store.latest(identity.step)
    if newest is None:
        return Decision(identity.step, "RUN", "first run", identity)
    reasons = list(_differences(newest.identity, identity))
    more = f"; and {len(reasons) - _NUM_REASONS} more" if len(reasons) > _NUM_REASONS else ""
    return Decision(identity.step, "RUN", "; ".join(reasons[:_NUM_REASONS]) + more, identity)


def _differences(before: Identity, now: Identity) -> Iterator[str]:
    for path, old, new in _changes(before.config, now.config):
        yield f"config {path}: {_show(old)} -> {_show(new)}"
    for name, old, new in _changes(before.inputs, now.inputs):
        yield f"input {name}: {str(old)[:SHOWN_DIGITS]} -> {str(new)[:SHOWN_DIGITS]}"
    for module, old, new in _changes(before.code, now.code):
        yield f"code {module} {'is new' if old == _ABSENT else 'is gone' if new == _ABSENT else 'changed'}"


def _changes(before: Mapping[str, JSON], now: Mapping[str, JSON]) -> Iterator[tuple[str, JSON, JSON]]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old != new:
            yield name, old, new


def _show(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value)
