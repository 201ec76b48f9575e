"""The audit log: who put which version in charge, when, instead of which, and why. Entries are added and
never changed.

Each entry is an MLflow run, so that the log lies where the registry does and everyone who can read the one
can read the other. It is written before anything moves, with all that will move, and ended when that is done:
one that is still running is an intent, which the next who has the model's turn finishes or undoes
(`moves.settle`).

The entries of a model are a chain. Each has a number and the digest of the one before, with its outcome; a
tag of the registered model holds the last digest. So an entry that was altered or deleted is noticed by
`log_problems`, also the last one.
"""

import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from pipelines.registry.versions import model_tags
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import search_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

Outcome = Literal["done", "undone", "open"]
_ACTION: Final = "diffbfr.action"
_HEAD: Final = "diffbfr.actions"
"""Tag of a registered model: number and digest of the last entry of its log."""
_FIELDS: Final = (
    "number",
    "when_ms",
    "who",
    "model",
    "before",
    "after",
    "why",
    "moves",
    "previous",
    "digest",
)
_OUTCOMES: Final[Mapping[str, Outcome]] = {"FINISHED": "done", "FAILED": "undone"}
_WHY_CHARACTERS: Final = 2000


@dataclass(frozen=True)
class Action:
    """One entry; `before` and `after` are champions as `name@version`, "" for none.

    `moves` is what the aliases move from and to, as numbers of versions; `number` is 0 in entries that older
    versions wrote.
    """

    when: str
    who: str
    action: str
    model: str
    before: str
    after: str
    why: str
    outcome: Outcome = "done"
    number: int = 0
    moves: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    previous: str = ""
    digest: str = ""
    sound: bool = True
    """Whether the digest is that of the entry."""
    run_id: str = ""

    @property
    def named(self) -> frozenset[str]:
        """Every version that it names."""
        numbers = {number for move in self.moves.values() for number in move if number}
        return frozenset(
            {ref for ref in (self.before, self.after) if ref}
            | {f"{self.model}@{number}" for number in numbers}
        )


def begin_action(
    registry: Registry,
    action: str,
    model: str,
    before: str,
    after: str,
    why: str,
    moves: Mapping[str, tuple[str, str]] | None = None,
) -> Action:
    """Write down what is about to be done; the caller has the model's turn, and ends it with `end_action`."""
    newest = _search(registry, _of(model), f"tags.`{_ACTION}.number` DESC", at_most=1)
    last = _entry(newest[0]) if newest else None
    values = {
        "number": f"{(last.number if last else 0) + 1:08d}",
        "when_ms": str(int(time.time() * 1000)),
        "who": who(),
        "model": model,
        "before": before,
        "after": after,
        "why": why[:_WHY_CHARACTERS],
        "moves": json.dumps(moves or {}, sort_keys=True),
        "previous": _link(last) if last else "",
    }
    values["digest"] = _digest(action, values)
    tags = {_ACTION: action} | {f"{_ACTION}.{name}": value for name, value in values.items()}
    run = registry.client.create_run(
        registry.experiment_id, run_name=f"{action} {after or before}", tags=tags
    )
    registry.client.set_registered_model_tag(model, _HEAD, f"{values['number']} {values['digest']}")
    return _entry(run)


def end_action(registry: Registry, entry: Action, done: bool = True) -> None:
    """Say that it is done, or that it was taken back."""
    registry.client.set_terminated(entry.run_id, "FINISHED" if done else "FAILED")
    registry.client.set_registered_model_tag(entry.model, _HEAD, f"{entry.number:08d} {entry.digest}")


def list_actions(registry: Registry) -> tuple[Action, ...]:
    """Every entry, oldest first."""
    runs = _search(registry, f"tags.`{_ACTION}` LIKE '%'")
    return tuple({entry.digest or entry.run_id: entry for entry in map(_entry, runs)}.values())


def open_actions(registry: Registry, model: str) -> tuple[Action, ...]:
    """Entries of one model that nobody ended; one comes twice if MLflow's client wrote it twice, for the
    first answer got lost.
    """
    return tuple(map(_entry, _search(registry, f"{_of(model)} and attributes.status = 'RUNNING'")))


def log_problems(registry: Registry, model: str) -> tuple[str, ...]:
    """What is wrong with the chain of a model's entries."""
    head, head_digest = _head(
        registry, model
    )  # before the entries: one that is being written is none too few
    every = [entry for entry in map(_entry, _search(registry, _of(model))) if entry.number]
    entries = {entry.number: entry for entry in sorted(every, key=lambda entry: entry.outcome != "open")}
    problems = [
        f"entry {number} is gone" for number in range(1, max(head, *entries, 0) + 1) if number not in entries
    ]
    problems += sorted(
        {f"entry {it.number} is there twice" for it in every if it.digest != entries[it.number].digest}
    )
    for number, entry in sorted(entries.items()):
        if not entry.sound or (head == number and head_digest != entry.digest):
            problems.append(f"entry {number} was altered")
        elif number - 1 in entries and entry.previous != _link(entries[number - 1]):
            problems.append(f"entry {number} does not follow entry {number - 1}, so one of them was altered")
    return tuple(problems)


def who() -> str:
    """The user and the machine; where the system has no name for the user, as in many containers, the
    number.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _search(
    registry: Registry, wanted: str, order: str = "attributes.start_time ASC", at_most: int | None = None
) -> list["Run"]:
    """A registered model belongs to no experiment, so its log may lie in several."""
    return search_runs(registry, wanted, order, at_most, everywhere=True)


def _of(model: str) -> str:
    return f"tags.`{_ACTION}.model` = '{model}'"


def _entry(run: "Run") -> Action:
    tags = run.data.tags
    values = {name: str(tags.get(f"{_ACTION}.{name}", "")) for name in _FIELDS}
    action, when_ms = str(tags[_ACTION]), int(values["when_ms"] or run.info.start_time)
    return Action(
        when=datetime.fromtimestamp(when_ms / 1000, UTC).isoformat(timespec="seconds"),
        action=action,
        **{name: values[name] for name in ("who", "model", "before", "after", "why", "previous", "digest")},
        outcome=_OUTCOMES.get(run.info.status, "open"),
        number=int(values["number"] or 0),
        moves={alias: (move[0], move[1]) for alias, move in json.loads(values["moves"] or "{}").items()},
        sound=values["digest"] == _digest(action, values),
        run_id=run.info.run_id,
    )


def _link(entry: Action) -> str:
    """What the next entry says of this one."""
    return hashlib.sha256(f"{entry.digest} {entry.outcome}".encode()).hexdigest()


def _digest(action: str, values: Mapping[str, str]) -> str:
    told = [values[name] for name in _FIELDS if name != "digest"]
    return hashlib.sha256(json.dumps([action, *told]).encode()).hexdigest()


def _head(registry: Registry, model: str) -> tuple[int, str]:
    """Number and digest that the registered model holds; 0 where nothing was ever done to it."""
    number, _, digest = model_tags(registry, model).get(_HEAD, "0 ").partition(" ")
    return int(number), digest
