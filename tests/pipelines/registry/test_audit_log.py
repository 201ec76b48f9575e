"""The audit log: its entries, recovery of an action that a crash left half done, and what a check finds."""

import getpass
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from diffbfr.errors import DiffBFRError
from pipelines.cli import main
from pipelines.registry import (
    ModelVersion,
    collect_garbage,
    freeze_holdout,
    fsck,
    get_version,
    holdout_of,
    list_actions,
    list_versions,
    lock,
    log_problems,
    promote,
    read_holdout,
    rollback,
)
from pipelines.registry.audit_log import begin_action, end_action, open_actions
from pipelines.tracking.connection import Registry
from tests.counts import count
from tests.pipelines.registry.fixtures import ROOT, CascadeMaker
from tests.pipelines.registry.scored import aliases, evaluation, measured

NAME = "diffbfr-cascade"


class Killed(BaseException):
    """What no code here catches: the process is gone."""


class Mortal:
    """An MLflow client whose process is killed just before its n-th call; later calls do nothing either."""

    def __init__(self, client: object, calls: int) -> None:
        self._client, self.left = client, calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*words: object, **options: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return getattr(self._client, name)(*words, **options)

        return call


def dies_within(registry: Registry, calls: int, act: Callable[[Registry], object]) -> bool:
    """Act with a client that is killed after so many calls; returns whether it was, and not done before."""
    mortal = replace(registry)
    mortal.__dict__["client"] = Mortal(registry.client, calls)
    try:
        act(mortal)
    except Killed:
        return True
    return False


@pytest.fixture
def three(
    make_cascade: CascadeMaker, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> list[ModelVersion]:
    """Version 2 is champion, 1 previous, 3 the candidate; abandoned locks are taken over at once."""
    monkeypatch.setattr(lock, "_STALE_S", 0.0)
    monkeypatch.setattr(lock, "_POLL_S", 0.01)
    versions = []
    for number in (1, 2, 3):
        versions.append(measured(registry, make_cascade(number), 22.0 + number, 0.6))
        if number < 3:
            promote(registry)
    return versions


def act_again(registry: Registry, act: Callable[[Registry], object]) -> None:
    try:
        act(registry)
    except DiffBFRError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True], ids=["promote", "promote --force"])
def test_a_promotion_that_is_killed_at_any_call_is_finished_or_never_begun(
    registry: Registry, three: list[ModelVersion], forced: bool
) -> None:
    calls, next_one = 0, count(4, 1) if forced else 1
    while dies_within(registry, calls, lambda dying: promote(dying, force=forced)):
        calls += next_one
        assert aliases(registry)["champion"] in (2, 3)
        doomed = {removal.name for removal in collect_garbage(registry, ROOT, (), plan=True)}
        assert not doomed & {f"{NAME}@2", f"{NAME}@3"}
        assert open_actions(registry, NAME) == () or f"{NAME}@1" not in doomed
        act_again(registry, promote)
        assert aliases(registry) == {"champion": 3, "previous": 2}
        assert open_actions(registry, NAME) == ()
        assert log_problems(registry, NAME) == ()
        for alias, number in (("champion", "2"), ("previous", "1"), ("candidate", "3")):
            registry.client.set_registered_model_alias(NAME, alias, number)
    assert calls > 15
    outcomes = [it.outcome for it in list_actions(registry)]
    assert set(outcomes) == {"done"}


@pytest.mark.slow
def test_a_rollback_that_is_killed_at_any_call_leaves_two_champions_to_choose_from(
    registry: Registry, three: list[ModelVersion]
) -> None:
    calls, champions = 0, set()
    while dies_within(registry, calls, rollback):
        calls += count(2, 1)
        assert aliases(registry)["champion"] in (1, 2)
        doomed = {removal.name for removal in collect_garbage(registry, ROOT, (), plan=True)}
        assert not doomed & {f"{NAME}@1", f"{NAME}@2"}
        removed = {removal.name for removal in collect_garbage(registry, ROOT, ())}
        assert not removed & {f"{NAME}@1", f"{NAME}@2"}
        assert {aliases(registry)[alias] for alias in ("champion", "previous")} == {1, 2}
        assert open_actions(registry, NAME) == ()
        assert log_problems(registry, NAME) == ()
        champions.add(aliases(registry)["champion"])
    assert calls > 15
    assert champions == {1, 2}


@pytest.mark.slow
def test_what_cannot_be_finished_is_undone(registry: Registry, three: list[ModelVersion]) -> None:
    """The process died after the first of the moves, and somebody deleted the new champion with another
    tool.
    """
    begin_action(
        registry,
        "promote",
        NAME,
        f"{NAME}@2",
        f"{NAME}@3",
        "",
        {"previous": ("1", "2"), "champion": ("2", "3"), "candidate": ("3", "")},
    )
    registry.client.set_registered_model_alias(NAME, "previous", "2")
    registry.client.delete_model_version(NAME, "3")
    assert [finding.problem[:31] for finding in fsck(registry) if finding.ref == f"log of {NAME}"] == [
        "promote diffbfr-cascade@3 was b"
    ]
    rollback(registry)
    assert aliases(registry) == {"champion": 1, "previous": 2}
    assert [(it.action, it.outcome) for it in list_actions(registry)[-2:]] == [
        ("promote", "undone"),
        ("rollback", "done"),
    ]
    assert log_problems(registry, NAME) == ()


@pytest.mark.slow
def test_a_candidate_that_was_registered_after_a_crash_stays_one(
    registry: Registry, three: list[ModelVersion], make_cascade: CascadeMaker
) -> None:
    begin_action(
        registry,
        "promote",
        NAME,
        f"{NAME}@2",
        f"{NAME}@3",
        "",
        {"champion": ("2", "3"), "candidate": ("3", "")},
    )
    make_cascade(4)
    collect_garbage(registry, "elsewhere", ())
    assert aliases(registry) == {"champion": 3, "previous": 1, "candidate": 4}


@pytest.mark.slow
def test_a_collection_that_is_killed_is_gone_on_with(
    registry: Registry, three: list[ModelVersion], make_cascade: CascadeMaker
) -> None:
    make_cascade(4)
    for calls in (12, 18, 24):
        dies_within(registry, calls, lambda dying: collect_garbage(dying, ROOT, ()))
    collect_garbage(registry, ROOT, ())
    assert [version.version for version in list_versions(registry, NAME)] == [1, 2, 4]
    assert log_problems(registry, NAME) == ()
    assert {it.outcome for it in list_actions(registry) if it.before == f"{NAME}@3"} <= {"done", "undone"}


@pytest.mark.slow
def test_a_changed_hold_out_is_an_entry_and_the_same_again_is_none(
    registry: Registry, three: list[ModelVersion]
) -> None:
    first = read_holdout(registry)
    assert first is not None
    other = holdout_of(evaluation((0.0, 0.0), "another"), "/other")
    assert freeze_holdout(registry, other, "", first_only=True) == first
    assert freeze_holdout(registry, other, "more faces") == other == read_holdout(registry)
    freeze_holdout(registry, other, "again")
    holdouts = [(it.before, it.after, it.why) for it in list_actions(registry) if it.action == "holdout"]
    assert holdouts == [("", first.id, "the first evaluation"), (first.id, other.id, "more faces")]


def entry(registry: Registry, number: int) -> str:
    (found,) = (it.run_id for it in list_actions(registry) if it.number == number)
    return found


def write_entry_again(registry: Registry) -> None:
    """As two registries would that were merged by hand."""
    last = registry.client.get_registered_model(NAME).tags["diffbfr.action.last"]
    registry.client.set_registered_model_tag(NAME, "diffbfr.action.last", "1")
    end_action(registry, begin_action(registry, "gc", NAME, f"{NAME}@7", "", ""))
    registry.client.set_registered_model_tag(NAME, "diffbfr.action.last", last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda registry: registry.client.delete_run(entry(registry, 2)), "entry 2 is gone"),
        (lambda registry: registry.client.delete_run(entry(registry, 3)), "entry 3 is gone"),
        (
            lambda registry: registry.client.delete_tag(entry(registry, 1), "diffbfr.action.entry"),
            "entry 1 is gone",
        ),
        (write_entry_again, "entry 2 is there twice"),
        (
            lambda registry: registry.client.set_registered_model_alias(NAME, "champion", "1"),
            "the alias champion names 1, the log says 2",
        ),
        (
            lambda registry: registry.client.delete_registered_model_alias(NAME, "previous"),
            "the alias previous names nothing, the log says 1",
        ),
        (
            lambda registry: registry.client.delete_model_version(NAME, "2"),
            "the alias champion names nothing, the log says 2",
        ),
        (
            lambda registry: registry.client.set_terminated(entry(registry, 3), "FAILED"),
            "the alias champion names 2, the log says 1",
        ),
    ],
    ids=["deleted", "the last", "without content", "twice", "moved", "removed", "version", "outcome"],
)
def test_a_lost_entry_and_an_alias_that_differs_from_the_log_are_found(
    registry: Registry,
    three: list[ModelVersion],
    damage: Callable[[Registry], None],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert log_problems(registry, NAME) == ()
    damage(registry)
    assert any(found.startswith(problem) for found in log_problems(registry, NAME))
    assert any(found.problem.startswith(problem) for found in fsck(registry) if found.ref == f"log of {NAME}")
    monkeypatch.setattr(sys, "argv", ["diffbfr", "models", "log", "--tracking", registry.uri])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert problem in capsys.readouterr().out


@pytest.mark.slow
def test_a_change_after_an_alias_was_moved_by_hand_makes_aliases_and_log_agree(
    registry: Registry, three: list[ModelVersion]
) -> None:
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    assert log_problems(registry, NAME) != ()
    promote(registry)
    assert log_problems(registry, NAME) == ()


@pytest.mark.slow
def test_a_model_that_was_deleted_goes_on_with_its_numbers(
    registry: Registry, three: list[ModelVersion], make_cascade: CascadeMaker
) -> None:
    registry.client.delete_registered_model(NAME)
    assert any("the log says 2" in problem for problem in log_problems(registry, NAME))
    measured(registry, make_cascade(4), 22.0, 0.6)
    promote(registry)
    assert [it.number for it in list_actions(registry)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_an_entry_that_the_client_wrote_twice_counts_once(
    registry: Registry, three: list[ModelVersion]
) -> None:
    """A server whose answer came too late was asked again."""
    run = registry.client.get_run(entry(registry, 3))
    registry.client.create_run(run.info.experiment_id, tags=dict(run.data.tags))
    before = aliases(registry)
    collect_garbage(registry, "elsewhere", ())
    assert aliases(registry) == before
    assert open_actions(registry, NAME) == ()
    assert log_problems(registry, NAME) == ()
    assert [it.number for it in list_actions(registry)] == [1, 2, 3]


@pytest.mark.slow
def test_a_user_without_a_name_is_a_number(
    registry: Registry, three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", nobody)
    promote(registry)
    assert list_actions(registry)[-1].user.startswith("uid ")
    assert get_version(registry, f"{NAME}@champion").version == 3
