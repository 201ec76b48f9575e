"""One at a time: a turn stays with whoever is alive, goes on where its owner died, and is nobody else's to
end.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from diffbfr.errors import DiffBFRError
from pipelines.registry import Registry, lock
from pipelines.registry.lock import Turn, turn

NAME = "diffbfr-cascade"
QUEUE = lock._queue


@pytest.fixture(autouse=True)
def _as_if_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_queue", lambda registry: nullcontext())
    monkeypatch.setattr(lock, "_POLL_S", 0.02)


@pytest.fixture
def held(registry: Registry) -> Iterator[Turn]:
    with turn(registry, NAME) as it:
        yield it


def tickets(registry: Registry) -> list[int]:
    return sorted(
        int(ticket.version) for ticket in registry.client.search_model_versions(f"name = '{NAME}.turn'")
    )


def renewals(held: Turn) -> list[str]:
    found = held.registry.client.search_model_versions(f"name = '{NAME}.turn'")
    return [ticket.tags.get("renewed", "") for ticket in found if str(ticket.version) == held.ticket]


def test_an_owner_renews_as_long_as_he_works(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    with turn(registry, NAME) as held:
        seen: set[str] = set()
        while len(seen) < 4:
            seen |= set(renewals(held))
    assert tickets(registry) == []


def test_a_slow_owner_who_renews_is_waited_for(held: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of who waits, 50 s pass between two looks; the owner works for more than eight minutes,
    and renews.
    """
    clock, looks = [0.0], [0]

    def sleep(seconds: float) -> None:
        clock[0] += 50.0
        looks[0] += 1
        if looks[0] <= 10:
            held.check()
        else:
            held.registry.client.delete_model_version(f"{NAME}.turn", held.ticket)

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(lock, "_PATIENCE_S", 3600.0)
    with turn(held.registry, NAME):
        assert looks[0] == 11


def test_a_dead_owners_turn_is_taken_over_and_not_before(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with turn(registry, NAME):
        pass
    registry.client.create_model_version(f"{NAME}.turn", "turn:/dead")
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.3)
    with pytest.raises(DiffBFRError, match="expected a turn"), turn(registry, NAME):
        pass
    assert len(tickets(registry)) == 1
    monkeypatch.setattr(lock, "_STALE_S", 0.1)
    monkeypatch.setattr(lock, "_PATIENCE_S", 30.0)
    with turn(registry, NAME):
        assert len(tickets(registry)) == 1
    assert tickets(registry) == []


def test_the_dead_behind_a_dead_owner_cost_no_further_minute(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with turn(registry, NAME):
        pass
    for _ in range(5):
        registry.client.create_model_version(f"{NAME}.turn", "turn:/dead")
    monkeypatch.setattr(lock, "_STALE_S", 1.0)
    removed: list[list[str]] = []
    remove = lock._remove
    monkeypatch.setattr(lock, "_remove", lambda held, stale: (removed.append(stale), remove(held, stale)))
    with turn(registry, NAME):
        pass
    assert [len(stale) for stale in removed if stale] == [5]


def test_a_sleeper_who_was_given_up_changes_nothing_and_ends_no_other_turn(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_STALE_S", 0.1)
    with ExitStack() as successors:
        with turn(registry, NAME) as sleeper:
            successor = successors.enter_context(turn(registry, NAME))
            with pytest.raises(DiffBFRError, match="the turn to change diffbfr-cascade was lost"):
                sleeper.check()
        assert tickets(registry) == [int(successor.ticket)]
        successor.check()
        monkeypatch.setattr(lock, "_STALE_S", 60.0)
        monkeypatch.setattr(lock, "_PATIENCE_S", 0.3)
        with pytest.raises(DiffBFRError, match="expected a turn"), turn(registry, NAME):
            pass
    assert tickets(registry) == []


def test_a_ticket_is_renewed_from_the_first(registry: Registry) -> None:
    """MLflow refuses one of two threads that both write a tag for the first time, as the renewing one and
    its owner would.
    """
    held = Turn(registry, NAME, lock._draw(registry, NAME))
    first = renewals(held)
    assert first != [""]
    held.check()
    assert renewals(held) != first


def test_who_is_stopped_at_the_head_of_the_queue_holds_nobody_up(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_QUEUE_S", 0.1)
    with QUEUE(registry), QUEUE(registry):
        pass


def test_whoever_lost_the_race_for_a_number_draws_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow gives up after three numbers that others took meanwhile."""
    create, calls = registry.client.create_model_version, []

    def lose_once(*words: object, **options: object) -> object:
        calls.append(words)
        if len(calls) == 1:
            raise MlflowException("Model Version creation error. Giving up after 3 attempts.", INTERNAL_ERROR)
        return create(*words, **options)

    monkeypatch.setattr(registry.client, "create_model_version", lose_once)
    with turn(registry, NAME):
        assert len(calls) >= 2


def test_those_who_wait_come_in_their_order(held: Turn) -> None:
    registry, came = held.registry, []

    def take(number: int) -> None:
        with turn(registry, NAME):
            came.append(number)

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        while len(tickets(registry)) < number + 2:
            time.sleep(0.02)
    registry.client.delete_model_version(f"{NAME}.turn", held.ticket)
    for thread in threads:
        thread.join(30)
    assert came == [0, 1, 2, 3]
