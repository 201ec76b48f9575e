"""The lock of a registered model: one holder at a time, takeover of abandoned leases, nothing left behind."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from diffbfr.errors import DiffBFRError
from pipelines.registry import lock
from pipelines.registry.lock import LEASE_TAG, LOCK_TAG, LockHandle, model_lock
from pipelines.tracking.connection import Registry, ensure_model

NAME = "diffbfr-cascade"
HOST_LOCK = lock._host_lock


@pytest.fixture(autouse=True)
def _contenders_as_if_on_several_machines(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_model(registry, NAME)
    monkeypatch.setattr(lock, "_host_lock", lambda registry: nullcontext())
    monkeypatch.setattr(lock, "_POLL_S", 0.02)


@pytest.fixture
def held(registry: Registry) -> Iterator[LockHandle]:
    with model_lock(registry, NAME) as it:
        yield it


def tags(registry: Registry) -> dict[str, str]:
    return dict(registry.client.get_registered_model(NAME).tags)


def tokens(registry: Registry) -> set[str]:
    return {tag.removeprefix(LOCK_TAG) for tag in tags(registry) if tag.startswith(LOCK_TAG)}


def delete_ticket(registry: Registry, token: str) -> None:
    for prefix in (LEASE_TAG, LOCK_TAG):
        registry.client.delete_registered_model_tag(NAME, f"{prefix}{token}")


def abandon_ticket(registry: Registry, token: str, number: int | None) -> None:
    """What a contender leaves that was killed; without a number it had only announced itself."""
    registry.client.set_registered_model_tag(NAME, f"{LOCK_TAG}{token}", "1")
    if number is not None:
        registry.client.set_registered_model_tag(NAME, f"{LEASE_TAG}{token}", f"{number} last")


def test_a_lock_that_is_free_leaves_no_trace(registry: Registry) -> None:
    with model_lock(registry, NAME):
        assert len(tokens(registry)) == 1
    assert tags(registry) == {}
    assert [model.name for model in registry.client.search_registered_models()] == [NAME]


def test_a_holder_renews_as_long_as_it_works(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    with model_lock(registry, NAME) as held:
        seen: set[str] = set()
        while len(seen) < 4:
            seen.add(tags(registry)[f"{LEASE_TAG}{held.token}"])
    assert tags(registry) == {}


def test_a_slow_holder_that_renews_is_waited_for(held: LockHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the waiting process's clock 50 s pass between two reads; the holder works for more than eight
    minutes, and renews.
    """
    clock, num_reads = [0.0], [0]

    def sleep(seconds: float) -> None:
        clock[0] += 50.0
        num_reads[0] += 1
        if num_reads[0] <= 10:
            held.check()
        else:
            delete_ticket(held.registry, held.token)

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(lock, "_TIMEOUT_S", 3600.0)
    with model_lock(held.registry, NAME):
        assert num_reads[0] == 11


@pytest.mark.parametrize("number", [1, None], ids=["holding", "announced"])
def test_an_abandoned_lock_is_taken_over_and_not_before_its_lease_ran_out(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    abandon_ticket(registry, "dead", number)
    monkeypatch.setattr(lock, "_TIMEOUT_S", 0.3)
    with pytest.raises(DiffBFRError, match="expected it to become free"), model_lock(registry, NAME):
        pass
    assert tokens(registry) == {"dead"}
    monkeypatch.setattr(lock, "_STALE_S", 0.1)
    monkeypatch.setattr(lock, "_TIMEOUT_S", 30.0)
    with model_lock(registry, NAME) as held:
        assert tokens(registry) == {held.token}
    assert tags(registry) == {}


def test_several_abandoned_tickets_cost_one_lease(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        abandon_ticket(registry, f"dead-{number}", number)
    monkeypatch.setattr(lock, "_STALE_S", 1.0)
    started = time.monotonic()
    with model_lock(registry, NAME) as held:
        assert tokens(registry) == {held.token}
    assert 1.0 <= time.monotonic() - started < 4.0


def test_a_suspended_holder_that_was_given_up_changes_nothing_and_releases_no_other_lock(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_STALE_S", 0.1)
    with ExitStack() as successors:
        with model_lock(registry, NAME) as suspended:
            successor = successors.enter_context(model_lock(registry, NAME))
            with pytest.raises(DiffBFRError, match="the lock on diffbfr-cascade was lost"):
                suspended.check()
        assert tokens(registry) == {successor.token}
        successor.check()
        monkeypatch.setattr(lock, "_STALE_S", 60.0)
        monkeypatch.setattr(lock, "_TIMEOUT_S", 0.3)
        with pytest.raises(DiffBFRError, match="expected it to become free"), model_lock(registry, NAME):
            pass
    assert tags(registry) == {}


def test_a_contender_that_was_suspended_before_it_had_a_number_does_not_come_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its announcement is deleted meanwhile; the number that it then writes is not believed."""
    read, interrupted = lock._read_tickets, list[bool]()

    def read_slowly(registry: Registry, name: str) -> Any:
        tickets = read(registry, name)
        if not interrupted:
            interrupted.append(True)
            for ticket in tickets:
                delete_ticket(registry, ticket.token)
        return tickets

    monkeypatch.setattr(lock, "_read_tickets", read_slowly)
    with pytest.raises(DiffBFRError, match="was lost"), model_lock(registry, NAME):
        pass
    assert tags(registry) == {}


def test_a_lease_is_there_before_its_thread(registry: Registry) -> None:
    """MLflow refuses one of two threads that both write a tag for the first time, as the renewing thread
    and the holder would.
    """
    with model_lock(registry, NAME) as held:
        first = tags(registry)[f"{LEASE_TAG}{held.token}"]
        assert first.startswith("1 ")
        held.check()
        assert tags(registry)[f"{LEASE_TAG}{held.token}"] != first


def test_a_suspended_holder_of_the_host_lock_delays_but_does_not_block(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_HOST_TIMEOUT_S", 0.1)
    with HOST_LOCK(registry), HOST_LOCK(registry):
        pass


def test_waiting_contenders_get_the_lock_in_their_order(held: LockHandle) -> None:
    registry, order = held.registry, list[int]()

    def take(number: int) -> None:
        with model_lock(registry, NAME):
            order.append(number)

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        while len([tag for tag in tags(registry) if tag.startswith(LEASE_TAG)]) < number + 2:
            time.sleep(0.02)
    delete_ticket(registry, held.token)
    for thread in threads:
        thread.join(30)
    assert order == [0, 1, 2, 3]


class Tags:
    """The tags of one model in memory, as every contender sees them, with a pause before each call."""

    def __init__(self, seed: int) -> None:
        self.tags: dict[str, str] = {}
        self._guard = threading.Lock()
        self._dice = random.Random(seed)

    def _at_some_time(self, act: Callable[[], Any]) -> Any:
        time.sleep(0.03 * self._dice.random() ** 4)
        with self._guard:
            return act()

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(tags=self._at_some_time(lambda: dict(self.tags)))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._at_some_time(lambda: self.tags.update({key: value}))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self._at_some_time(lambda: self.tags.pop(key, None))


@pytest.mark.parametrize("seed", range(3))
def test_contenders_exclude_each_other_however_their_calls_interleave(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each increments a counter in two steps, which loses an increment if two hold the lock at once."""
    monkeypatch.setattr(lock, "_POLL_S", 0.001)
    client, counter = Tags(seed), [0]
    registry: Any = SimpleNamespace(client=client)

    def increment(_: int) -> None:
        with model_lock(registry, NAME):
            before = counter[0]
            time.sleep(0.01)
            counter[0] = before + 1

    with ThreadPoolExecutor(2 + seed) as pool:
        list(pool.map(increment, range(40)))
    assert counter == [40]
    assert client.tags == {}
