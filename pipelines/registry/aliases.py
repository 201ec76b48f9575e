"""What changes a registered model: one at a time, written down first, and settled by the next where a
crash left it half done.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from diffbfr.errors import UsageError
from pipelines.registry.audit_log import Action, begin_action, end_action, open_actions
from pipelines.registry.holdout import TAG, HoldOut, read_holdout
from pipelines.registry.lock import Turn, turn
from pipelines.registry.versions import CASCADE, MODELS, ModelVersion, aliases_of, list_versions
from pipelines.tracking.connection import Registry, ensure_model

GC: Final = "gc"
HOLDOUT: Final = "holdout"
_ORDER: Final = ("previous", "champion", "candidate")
"""A version is aliased anew before it loses its old alias, so that no crash leaves one that is wanted
without any.
"""


@contextmanager
def changing(registry: Registry, name: str) -> Iterator[Turn]:
    """Hold a model's turn, with everything settled that earlier holders left half done."""
    if name not in MODELS:
        raise UsageError(f"{name!r} is no model; expected one of {', '.join(MODELS)}")
    with turn(registry, name) as held:
        for entry in open_actions(registry, name):
            settle(held, entry)
        yield held


def recover_all(registry: Registry, name: str) -> None:
    """Settle what a crash left half done, before anybody looks at what there is."""
    if open_actions(registry, name):
        with changing(registry, name):
            return


def move_aliases(
    held: Turn, action: str, before: str, after: str, why: str, target: Mapping[str, str]
) -> None:
    """Move aliases to versions ("" takes one away), and keep who did it, from what to what, and why."""
    now = aliases_of(held.registry, held.name)
    moves = {alias: (now.get(alias, ""), to) for alias, to in target.items()}
    held.check()
    entry = begin_action(held.registry, action, held.name, before, after, why, moves)
    _move(held, moves)
    end_action(held.registry, entry)


def delete_version(held: Turn, version: ModelVersion, why: str) -> None:
    """Delete a version that nobody names, and keep who did it."""
    held.check()
    entry = begin_action(held.registry, GC, held.name, version.ref, "", why)
    held.registry.client.delete_model_version(held.name, str(version.version))
    end_action(held.registry, entry)


def freeze_holdout(registry: Registry, holdout: HoldOut, why: str, first_only: bool = False) -> HoldOut:
    """Make a hold-out the one that the gate compares on, and keep who did it; returns which it is.

    With `first_only` one that is there stays.
    """
    ensure_model(registry, CASCADE)
    with changing(registry, CASCADE) as held:
        now = read_holdout(registry)
        if now is not None and (first_only or now == holdout):
            return now
        held.check()
        entry = begin_action(registry, HOLDOUT, CASCADE, now.id if now else "", holdout.id, why)
        registry.client.set_registered_model_tag(CASCADE, TAG, holdout.text())
        end_action(registry, entry)
        return holdout


def settle(held: Turn, entry: Action) -> None:
    """Finish an action that was begun, or take it back where what it wants is gone; an alias that others
    moved since stays.
    """
    alive = {str(version.version) for version in list_versions(held.registry, held.name)}
    if entry.action == GC:
        done = entry.before.rpartition("@")[2] not in alive
    elif entry.action == HOLDOUT:
        now = read_holdout(held.registry)
        done = now is not None and now.id == entry.after
    else:
        done = alive.issuperset(to for _, to in entry.moves.values() if to)
        _move(
            held,
            entry.moves
            if done
            else {alias: (to, start) for alias, (start, to) in entry.moves.items() if start in alive},
        )
    end_action(held.registry, entry, done)


def _move(held: Turn, moves: Mapping[str, tuple[str, str]]) -> None:
    """Move each alias that still is where the move begins; the turn is renewed before each."""
    client = held.registry.client
    for alias in sorted(moves, key=_ORDER.index):
        start, to = moves[alias]
        if start == to or aliases_of(held.registry, held.name).get(alias, "") != start:
            continue
        held.check()
        if to:
            client.set_registered_model_alias(held.name, alias, to)
        else:
            client.delete_registered_model_alias(held.name, alias)
