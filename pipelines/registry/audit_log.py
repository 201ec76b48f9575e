"""The audit log: which version was put in charge, when, by whom and why. Entries are only ever added.

Each entry is an MLflow run, so whoever can read the registry can read its log. The entry is written, with
every alias move it stands for, before anything moves; its run ends when that is done. An entry whose run is
still RUNNING is therefore an intent that a crash left behind, which the next command that locks the model
finishes or undoes (`aliases.recover`).

The entries of a model are numbered, and a tag of the model holds the last number. `log_problems`
reports what is missing, and aliases that are not where the log says. It finds accidents and stops no forger:
whoever may write to MLflow may write both.
"""

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal
from uuid import uuid4

from diffbfr.errors import UsageError, one_line
from pipelines.registry.lock import model_lock
from pipelines.registry.versions import aliases_of, has_model, model_tags, parse_tag
from pipelines.tracking.connection import Registry
from pipelines.tracking.runs import search_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

ActionOutcome = Literal["done", "undone", "open"]
_ACTION: Final = "diffbfr.action"
_ENTRY: Final = "diffbfr.action.entry"
_MODEL: Final = "diffbfr.action.model"
_LAST_NUMBER: Final = "diffbfr.action.last"
_OUTCOMES: Final[Mapping[str, ActionOutcome]] = {"FINISHED": "done", "FAILED": "undone"}
_WHY_CHARACTERS: Final = 2000


@dataclass(frozen=True)
class Action:
    """One entry. `before` and `after` are champions as `name@version`, or ids of hold-outs; "" is none.

    `moves` is alias -> (version before, version after), as numbers of versions; "" is none.
    """

    action: str
    model: str
    before: str
    after: str
    why: str
    moves: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    number: int = 0
    when: str = ""
    user: str = ""
    id: str = ""
    outcome: ActionOutcome = "open"
    run_id: str = ""

    @property
    def named(self) -> frozenset[str]:
        """Every version that the entry names, as `name@version`."""
        numbers = {*chain.from_iterable(self.moves.values())} - {""}
        return frozenset({self.before, self.after} - {""} | {f"{self.model}@{number}" for number in numbers})


def begin_action(
    registry: Registry,
    action: str,
    model: str,
    before: str,
    after: str,
    why: str,
    moves: Mapping[str, tuple[str, str]] | None = None,
) -> Action:
    """Write down what is about to be done. The caller holds the model's lock and calls `end_action` later."""
    # Where the tag got lost, with a model that was deleted, the numbers go on from the entries.
    last = _last_number(registry, model) or max([0, *(it.number for it in list_actions(registry, model))])
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Action(
        action,
        model,
        before,
        after,
        why[:_WHY_CHARACTERS],
        moves or {},
        last + 1,
        when,
        current_user(),
        uuid4().hex,
    )
    tags = {_ACTION: action, _MODEL: model, _ENTRY: json.dumps(asdict(entry), ensure_ascii=False)}
    run = registry.client.create_run(
        registry.experiment_id, run_name=f"{action} {after or before}", tags=tags
    )
    registry.client.set_registered_model_tag(model, _LAST_NUMBER, str(last + 1))
    return _entry(run)


def end_action(registry: Registry, entry: Action, done: bool = True) -> None:
    """Record that an action was done, or that it was undone."""
    registry.client.set_terminated(entry.run_id, "FINISHED" if done else "FAILED")
    number = max(entry.number, _last_number(registry, entry.model))
    registry.client.set_registered_model_tag(entry.model, _LAST_NUMBER, str(number))


def list_actions(registry: Registry, model: str | None = None) -> tuple[Action, ...]:
    """Every entry, or those of one model, oldest first. An entry that MLflow's client wrote twice is one."""
    wanted = f"tags.`{_MODEL}` = '{model}'" if model else f"tags.`{_MODEL}` LIKE '%'"
    return tuple({entry.id: entry for entry in _search(registry, wanted)}.values())


def open_actions(registry: Registry, model: str) -> tuple[Action, ...]:
    """Entries of one model that were begun and never ended."""
    return tuple(_search(registry, f"tags.`{_MODEL}` = '{model}' and attributes.status = 'RUNNING'"))


def log_problems(registry: Registry, model: str) -> tuple[str, ...]:
    """Entries of a model that are missing or there twice, and aliases that are not where the log says.

    What looks wrong is read again under the model's lock: it may only have been under way.
    """
    problems = _log_problems(registry, model)
    if not problems or not has_model(registry, model):
        return problems
    with model_lock(registry, model):
        return _log_problems(registry, model)


def current_user() -> str:
    """`user@host`; a user without a name, as in many containers, is `uid N`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _log_problems(registry: Registry, model: str) -> tuple[str, ...]:
    last = _last_number(registry, model)
    entries = sorted(list_actions(registry, model), key=lambda entry: entry.number)
    numbers = [entry.number for entry in entries]
    problems = [f"entry {it} is gone" for it in range(1, max([last, *numbers]) + 1) if it not in numbers]
    problems += [f"entry {it} is there twice" for it in sorted({*numbers}) if numbers.count(it) > 1]
    if any(entry.outcome == "open" for entry in entries):
        return tuple(problems)
    logged: dict[str, str] = {}
    for entry in entries:
        if entry.outcome == "done":
            logged |= {alias: to for alias, (_, to) in entry.moves.items()}
    aliases = aliases_of(registry, model)
    # A registration moves the candidate and is no entry.
    for alias in ("champion", "previous"):
        found, expected = aliases.get(alias) or "nothing", logged.get(alias) or "nothing"
        if found != expected:
            problems.append(f"the alias {alias} names {found}, the log says {expected}")
    return tuple(problems)


def _search(registry: Registry, wanted: str) -> list[Action]:
    """Entries of every experiment: a registered model belongs to none, so its log may lie in several."""
    runs = search_runs(registry, wanted, "attributes.start_time ASC", everywhere=True)
    return [_entry(run) for run in runs if _ENTRY in run.data.tags]


def _entry(run: "Run") -> Action:
    values = parse_tag("an entry of the audit log", run.data.tags[_ENTRY])
    try:
        moves = {alias: (start, to) for alias, (start, to) in values["moves"].items()}
        outcome = _OUTCOMES.get(run.info.status, "open")
        return Action(**{**values, "moves": moves, "outcome": outcome, "run_id": run.info.run_id})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the entry {run.info.run_id} of the audit log is damaged ({one_line(error)}); expected an "
            "action with its moves; restore the registry from a backup"
        ) from error


def _last_number(registry: Registry, model: str) -> int:
    return int(model_tags(registry, model).get(_LAST_NUMBER, 0))
