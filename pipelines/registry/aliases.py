"""Changes of a registered model: under its lock, written down first, finished or undone after a crash."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from diffbfr.errors import UsageError
from pipelines.registry.audit_log import Action, begin_action, end_action, open_actions
from pipelines.registry.holdout import TAG, HoldOut, read_holdout
from pipelines.registry.lock import LockHandle, model_lock
from pipelines.registry.versions import CASCADE, MODELS, ModelVersion, aliases_of, has_model, list_versions
from pipelines.tracking.connection import Registry, ensure_model

GC: Final = "gc"
HOLDOUT: Final = "holdout"
_ORDER: Final = ("previous", "champion", "candidate")
"""A version gets its new alias before it loses its old one, so no crash leaves it without any."""


@contextmanager
def locked_model(registry: Registry, name: str) -> Iterator[LockHandle]:
    """Hold a model's lock, after what a crash left half done was finished or undone."""
    if name not in MODELS:
        raise UsageError(f"{name!r} is no model; expected one of {', '.join(MODELS)}")
    if not has_model(registry, name):
        raise UsageError(f"{name} has no versions at all; expected a registered one; run the pipeline")
    with model_lock(registry, name) as lock:
        for entry in open_actions(registry, name):
            recover(lock, entry)
        yield lock


def recover_all(registry: Registry, name: str) -> None:
    """Finish or undo what a crash left half done, so that what is read next is whole."""
    if open_actions(registry, name) and has_model(registry, name):
        with locked_model(registry, name):
            return


def recover(lock: LockHandle, entry: Action) -> None:
    """Finish an action that was begun, or undo it where a version that it needs is gone.

    An alias that was moved to yet another version since then stays where it is.
    """
    versions = {str(version.version) for version in list_versions(lock.registry, lock.name)}
    if entry.action == GC:
        done = entry.before.rpartition("@")[2] not in versions
    elif entry.action == HOLDOUT:
        holdout = read_holdout(lock.registry)
        done = holdout is not None and holdout.id == entry.after
    else:
        done = versions.issuperset(to for _, to in entry.moves.values() if to)
        back = {alias: (to, start) for alias, (start, to) in entry.moves.items() if start in versions}
        _move(lock, entry.moves if done else back)
    end_action(lock.registry, entry, done)


def move_aliases(
    lock: LockHandle, action: str, before: str, after: str, why: str, targets: Mapping[str, str]
) -> None:
    """Move aliases to versions ("" removes one), as one entry of the audit log."""
    now = aliases_of(lock.registry, lock.name)
    moves = {alias: (now.get(alias, ""), to) for alias, to in targets.items()}
    lock.check()
    entry = begin_action(lock.registry, action, lock.name, before, after, why, moves)
    _move(lock, moves)
    end_action(lock.registry, entry)


def delete_version(lock: LockHandle, version: ModelVersion, why: str) -> None:
    """Delete a version that nothing references, as one entry of the audit log."""
    lock.check()
    entry = begin_action(lock.registry, GC, lock.name, version.ref, "", why)
    lock.registry.client.delete_model_version(lock.name, str(version.version))
    end_action(lock.registry, entry)


def freeze_holdout(registry: Registry, holdout: HoldOut, why: str, first_only: bool = False) -> HoldOut:
    """Make a hold-out the one that `promote` compares on; returns the one in force afterwards.

    With `first_only` an existing hold-out is kept. A change is an entry of the audit log.
    """
    ensure_model(registry, CASCADE)
    with locked_model(registry, CASCADE) as lock:
        now = read_holdout(registry)
        if now is not None and (first_only or now == holdout):
            return now
        lock.check()
        entry = begin_action(registry, HOLDOUT, CASCADE, now.id if now else "", holdout.id, why)
        registry.client.set_registered_model_tag(CASCADE, TAG, holdout.to_tag())
        end_action(registry, entry)
        return holdout


def _move(lock: LockHandle, moves: Mapping[str, tuple[str, str]]) -> None:
    """Move each alias that is still where its move begins; the lease is renewed before each."""
    client = lock.registry.client
    for alias in sorted(moves, key=_ORDER.index):
        start, to = moves[alias]
        if start == to or aliases_of(lock.registry, lock.name).get(alias, "") != start:
            continue
        lock.check()
        if to:
            client.set_registered_model_alias(lock.name, alias, to)
        else:
            client.delete_registered_model_alias(lock.name, alias)
