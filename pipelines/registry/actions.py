"""The audit log: who put which version in charge, when, instead of which, and why. Entries are added and never changed.

Each entry is a finished MLflow run, so that the log lies where the registry does and everyone who can read the one can read the other.
"""

import getpass
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipelines.registry.connection import Registry

_ACTION: Final = "diffbfr.action"
_FIELDS: Final = ("who", "model", "before", "after", "why")


@dataclass(frozen=True)
class Action:
    """One entry; `before` and `after` are champions as `name@version`, "" for none."""

    when: str
    who: str
    action: str
    model: str
    before: str
    after: str
    why: str


def record_action(registry: Registry, action: str, model: str, before: str, after: str, why: str) -> None:
    """Add an entry."""
    values = (f"{getpass.getuser()}@{socket.gethostname()}", model, before, after, why)
    tags = {_ACTION: action} | {f"{_ACTION}.{name}": value for name, value in zip(_FIELDS, values, strict=True)}
    run = registry.client.create_run(registry.experiment_id, run_name=f"{action} {after}", tags=tags)
    registry.client.set_terminated(run.info.run_id, "FINISHED")


def list_actions(registry: Registry) -> tuple[Action, ...]:
    """Every entry, oldest first."""
    runs, token = [], None
    while True:
        page = registry.client.search_runs(
            [registry.experiment_id],
            filter_string=f"tags.`{_ACTION}` LIKE '%'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += list(page)
        token = page.token
        if not token:
            break
    return tuple(
        Action(
            datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
            action=run.data.tags[_ACTION],
            **{name: run.data.tags.get(f"{_ACTION}.{name}", "") for name in _FIELDS},
        )
        for run in runs
    )
